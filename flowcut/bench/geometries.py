"""What there is to time, and sizes of models: published ones and tiny ones. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

COMMANDS = {
    "encode": "the vision encoder",
    "prefill": "the language model over a prompt",
    "generate": "encoder, prompt and new tokens",
}
OPS = "count the operator calls and waits that a pruner adds to the vision encoder"
VOCABULARY, PLACEHOLDER = 1000, 999


@dataclass(frozen=True)
class Geometry:
    """Sizes of a model and of what it is shown.

    Attributes:
        family: its classes' name in transformers.
        vision, text: fields of the encoder's and the decoder's config.
        budget: default of --budget.
        slice: default of --layers-slice on a CPU.
        rows: encoder rows of a sample: tiles or frames.
        side: pixels along a side of a row.
        patch: pixels along a side of a patch, where patches are given packed.
        patches_per_token, pooled, prefix: see `flowcut.cost.cost_of`. projector: how many linear layers it has.
        fields: what else the model's config holds.
    """

    family: str
    vision: dict[str, Any]
    text: dict[str, Any]
    budget: int = 64
    slice: int = 2
    rows: int = 1
    side: int = 336
    patch: int = 14
    patches_per_token: int = 1
    pooled: bool = False
    prefix: int = 1
    projector: int = 2
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def packed(self) -> bool:
        """Whether its encoder gets the patches of all images as one sequence, and merges 2 x 2 of them."""
        return "spatial_merge_size" in self.vision


def _clip(width: int, inner: int, layers: int, heads: int, side: int = 336) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "image_size": side}
    return {"model_type": "clip_vision_model", "num_attention_heads": heads, "patch_size": 14, **sizes}


def _llama(width: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    return {"model_type": "llama", "num_attention_heads": heads, "num_key_value_heads": heads, **sizes}


def _qwen(width: int, inner: int, layers: int, heads: int, key_values: int, *sections: int) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    other = {"model_type": "qwen2_vl_text", "num_key_value_heads": key_values, "rope_parameters": rope}
    return {**_llama(width, inner, layers, heads), **other}


def _qwen3(width: int, inner: int, layers: int, heads: int, key_values: int, *sections: int) -> dict[str, Any]:
    other = {"model_type": "qwen3_vl_text", "head_dim": 2 * sum(sections)}
    return {**_qwen(width, inner, layers, heads, key_values, *sections), **other}


def _qwen35(width: int, inner: int, layers: int, heads: int, key_values: int, head: int) -> dict[str, Any]:
    """Three layers of four have no attention; those that have turn a quarter of each head."""
    found = _qwen(width, inner, layers, heads, key_values, -(-head // 24), -(-head // 24), head // 24)
    rope = {**found["rope_parameters"], "partial_rotary_factor": 0.25}
    return {**found, "model_type": "qwen3_5_text", "head_dim": head, "rope_parameters": rope}


def _glm(width: int, inner: int, layers: int, heads: int, key_values: int, *sections: int) -> dict[str, Any]:
    found = _qwen(width, inner, layers, heads, key_values, *sections)
    rope = {**found["rope_parameters"], "partial_rotary_factor": 0.5}
    return {**found, "model_type": "glm4v_text", "rope_parameters": rope}


def _packed(width: int, depth: int, heads: int, **sizes: Any) -> dict[str, Any]:
    return {"hidden_size": width, "depth": depth, "num_heads": heads, "spatial_merge_size": 2, **sizes}


def _internvl(vision: dict[str, Any], text: dict[str, Any], **other: Any) -> Geometry:
    vision, text = {**vision, "model_type": "internvl_vision"}, {**text, "model_type": "qwen2"}
    return Geometry("InternVL", vision, text, slice=4, patches_per_token=4, **other)


def _smolvlm(vision: dict[str, Any], text: dict[str, Any], scale: int, **other: Any) -> Geometry:
    vision, fields = {**vision, "model_type": "smolvlm_vision"}, {"scale_factor": scale}
    other = {"slice": 4, "prefix": 0, "projector": 1, **other}
    return Geometry("SmolVLM", vision, text, patches_per_token=scale**2, fields=fields, **other)


def _gemma3(
    vision: dict[str, Any], text: dict[str, Any], heads: tuple[int, int], tokens: int, **other: Any
) -> Geometry:
    """heads: number of key and value heads, and width of a head."""
    vision = {**vision, "model_type": "siglip_vision_model", "vision_use_head": False}
    sizes = {"num_key_value_heads": heads[0], "head_dim": heads[1], "query_pre_attn_scalar": heads[1]}
    text, cell = {**text, **sizes, "model_type": "gemma3_text"}, (vision["image_size"] // 14) ** 2 // tokens
    other = {"prefix": 0, "projector": 1, "pooled": True, "fields": {"mm_tokens_per_image": tokens}, **other}
    return Geometry("Gemma3", vision, text, patches_per_token=cell, **other)


_CLIP, _LLAMA = _clip(1024, 4096, 24, 16), _llama(4096, 11008, 32, 32)
_QWEN = _qwen(3584, 18944, 28, 28, 4, 16, 24, 24)
_QWEN_VIT = _packed(3584, 32, 16, embed_dim=1280)
_QWEN3_VIT = _packed(1152, 27, 16, intermediate_size=4304, out_hidden_size=4096, deepstack_visual_indexes=[8, 16, 24])
_QWEN35_VIT = _packed(1152, 27, 16, intermediate_size=4304, out_hidden_size=4096)
_GLM_VIT = _packed(1536, 24, 12, intermediate_size=13696, out_hidden_size=4096)
_TINY, _SMALL = _clip(64, 128, 8, 4, 84), _llama(64, 128, 8, 4)
_TINY_VIT = _packed(64, 8, 4, embed_dim=64)
_TINY_VIT_3 = _packed(64, 8, 4, intermediate_size=128, out_hidden_size=64, deepstack_visual_indexes=[1, 3, 5])
_TINY_VIT_35 = _packed(64, 8, 4, intermediate_size=128, out_hidden_size=64)
_TINY_QWEN35 = _qwen35(64, 128, 8, 4, 2, 16) | {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
_TINY_VIT_GLM = _packed(64, 8, 4, intermediate_size=128, out_hidden_size=64)
GEOMETRIES = {
    "llava-1.5-7b": Geometry("Llava", _CLIP, _LLAMA),
    "llava-1.5-13b": Geometry("Llava", _CLIP, _llama(5120, 13824, 40, 40)),
    "llava-next-7b": Geometry("LlavaNext", _CLIP, _LLAMA, budget=160, slice=4, rows=5),
    "video-llava-7b": Geometry("VideoLlava", _clip(1024, 4096, 24, 16, 224), _LLAMA, budget=32, rows=8, side=224),
    "qwen2-vl-7b": Geometry("Qwen2VL", _QWEN_VIT, _QWEN, slice=4, side=672),
    "qwen3-vl-8b": Geometry("Qwen3VL", _QWEN3_VIT, _qwen3(4096, 12288, 36, 32, 8, 24, 20, 20), 64, 5, 1, 768, 16),
    "qwen3.5-9b": Geometry("Qwen3_5", _QWEN35_VIT, _qwen35(4096, 12288, 32, 16, 4, 256), 64, 4, 1, 768, 16),
    "glm-4.1v-9b": Geometry("Glm4v", _GLM_VIT, _glm(4096, 13696, 40, 32, 2, 8, 12, 12), slice=4, side=672),
    "narrow": Geometry("Llava", _clip(64, 128, 24, 4), _SMALL),
    "deep": Geometry("Llava", _clip(512, 512, 24, 8, 168), _SMALL, budget=16, side=168),
    "internvl3-8b": _internvl(
        _clip(1024, 4096, 24, 16, 448), {**_llama(3584, 18944, 28, 28), "num_key_value_heads": 4}, side=448
    ),
    "smolvlm2-2.2b": _smolvlm(_clip(1152, 4304, 27, 16, 384), _llama(2048, 8192, 24, 32), 3, budget=20, side=384),
    "gemma3-4b": _gemma3(_clip(1152, 4304, 27, 16, 896), _llama(2560, 10240, 34, 8), (4, 256), 256, side=896),
    "tiny": Geometry("Llava", _TINY, _SMALL, budget=8, side=84),
    "tiny-next": Geometry("LlavaNext", _TINY, _SMALL, budget=8, slice=4, rows=5, side=84),
    "tiny-video": Geometry("VideoLlava", _TINY, _SMALL, budget=4, rows=3, side=84),
    "tiny-internvl": _internvl(_clip(64, 128, 8, 4, 168), _SMALL, budget=8, side=168),
    "tiny-smolvlm": _smolvlm(_clip(64, 128, 8, 4, 168), _SMALL, 3, budget=4, side=168),
    "tiny-gemma": _gemma3(_clip(64, 128, 8, 4, 168), _SMALL, (4, 16), 36, budget=8, side=168),
    "tiny-qwen": Geometry("Qwen2VL", _TINY_VIT, _qwen(64, 128, 8, 4, 2, 2, 3, 3), budget=8, slice=4, side=168),
    "tiny-qwen3": Geometry("Qwen3VL", _TINY_VIT_3, _qwen3(64, 128, 8, 4, 2, 2, 3, 3), 8, 4, 1, 192, 16),
    "tiny-qwen3.5": Geometry("Qwen3_5", _TINY_VIT_35, _TINY_QWEN35, 8, 4, 1, 192, 16),
    "tiny-glm": Geometry("Glm4v", _TINY_VIT_GLM, _glm(64, 128, 8, 4, 2, 1, 1, 2), budget=8, slice=4, side=168),
}
