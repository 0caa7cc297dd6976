"""Models of published sizes with random weights that attend as trained ones do, and pictures to show them.

Random weights attend evenly, trained ones ever more sharply with depth, and FlowCut's schedule follows that. So the
weights of each encoder layer's query and key projections are multiplied by one number, found by bisection on other
images, at which the global token's attention has a given entropy ratio H / ln n: `RATIOS` in the first and last layer,
equal steps between. Images are colour fields under noise, of different grain and contrast, so their schedules differ
and batches are ragged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from flowcut import scores
from flowcut.attach import attach
from flowcut.pruner import Cut, Pruner, View

RATIOS = 0.97, 0.75
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
    patches_per_token: int = 1
    pooled: bool = False
    prefix: int = 1
    projector: int = 2
    fields: dict[str, Any] = field(default_factory=dict)


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
_QWEN_VIT = {"embed_dim": 1280, "num_heads": 16, "hidden_size": 3584, "depth": 32}
_TINY, _SMALL = _clip(64, 128, 8, 4, 84), _llama(64, 128, 8, 4)
_TINY_VIT = {"embed_dim": 64, "num_heads": 4, "hidden_size": 64, "depth": 8}
GEOMETRIES = {
    "llava-1.5-7b": Geometry("Llava", _CLIP, _LLAMA),
    "llava-1.5-13b": Geometry("Llava", _CLIP, _llama(5120, 13824, 40, 40)),
    "llava-next-7b": Geometry("LlavaNext", _CLIP, _LLAMA, budget=160, slice=4, rows=5),
    "video-llava-7b": Geometry("VideoLlava", _clip(1024, 4096, 24, 16, 224), _LLAMA, budget=32, rows=8, side=224),
    "qwen2-vl-7b": Geometry("Qwen2VL", _QWEN_VIT, _QWEN, slice=4, side=672),
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
}


def draw_weights(model: torch.nn.Module, seed: int) -> None:
    """Normal weights of standard deviation 1 / sqrt(inputs), norms and layer scales 1, biases 0; in place."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if parameter.ndim == 1 and name.endswith(("weight", "bias", "lambda_1", "lambda_2")):
            # Gemma's norms add the 1 themselves.
            gain = 0 if "Gemma" in type(model).__name__ and "norm" in name and "vision" not in name else 1
            parameter.fill_(0 if name.endswith("bias") else gain)
        else:
            generator = torch.Generator(parameter.device).manual_seed(seed)
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
            seed += 1


def pictures(count: int, side: int, seed: int) -> Tensor:
    """[count, 3, side, side]: colour fields under noise, of different grain, contrast and noise."""
    images = []
    for number in range(count):
        generator = torch.Generator().manual_seed(1000 * seed + number)
        grain, contrast, noise = torch.rand(3, generator=generator).tolist()
        fields = torch.randn(1, 3, 6 + int(18 * grain), 6 + int(18 * grain), generator=generator)
        fields = torch.nn.functional.interpolate(fields, size=(side, side))[0]
        noise = (0.2 + 0.4 * noise) * torch.randn(3, side, side, generator=generator)
        images.append((0.4 + 0.8 * contrast) * fields + noise)
    return torch.stack(images)


def media(geometry: Geometry, samples: int, seed: int) -> dict[str, Tensor]:
    """Keyword arguments that bring one image, or one video, per sample, as the family's processor lays them out."""
    side, rows = geometry.side, geometry.rows
    images = pictures(samples * rows, side, seed)
    if geometry.family in ("Llava", "InternVL", "Gemma3"):
        return {"pixel_values": images}
    if geometry.family == "SmolVLM":
        return {"pixel_values": images.view(samples, rows, 3, side, side)}
    if geometry.family == "VideoLlava":
        return {"pixel_values_videos": images.view(samples, rows, 3, side, side)}
    if geometry.family == "LlavaNext":
        sizes = torch.tensor([[2 * side, 2 * side]] * samples)
        return {"pixel_values": images.view(samples, rows, 3, side, side), "image_sizes": sizes}
    # 2 x 2 merge groups one after the other; a patch as [channel, time, height, width]
    patches = images.view(samples, 3, side // 28, 2, 14, side // 28, 2, 14).permute(0, 2, 5, 3, 6, 1, 4, 7)
    pixels = torch.stack([patches, patches], dim=6).reshape(-1, 3 * 2 * 14 * 14)
    return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, side // 14, side // 14]] * samples)}


def sharpen(model: nn.Module, encode: Callable[[], Any], passes: int = 2) -> None:
    """Give the global attention of every encoder layer its entropy ratio; see the top of this file.

    Args:
        encode: runs the encoder over pictures to go by.

    A layer is corrected after it ran, and those after it see what came of the wrong one: hence a second pass.
    """
    probe = _Sharpen(budget=10**9)
    with torch.inference_mode(), attach(model, probe) as handle:
        probe.attentions.extend(handle.anatomy.encoders[-1].attentions)
        for _ in range(passes):
            encode()


@dataclass(frozen=True)
class _Sharpen(Pruner):
    """Drops nothing, but after each encoder layer scales its query and key projections."""

    attentions: list[Any] = field(default_factory=list)

    def vision(self, view: View) -> Cut | None:
        target = RATIOS[0] + (RATIOS[1] - RATIOS[0]) * view.layer / (view.layers - 1)
        low, high = -10.0, 10.0
        for _ in range(30):
            middle = (low + high) / 2
            row = scores.softmax_row(view.global_token(view.q), view.k, view.scaling * math.exp(middle)).mean(dim=1)
            weights = scores.normalise(row[:, view.shape.num_prefix_tokens :])
            sharp = float(scores.entropy(weights).mean()) < target * math.log(weights.shape[1])
            low, high = (low, middle) if sharp else (middle, high)
        attention = self.attentions[view.layer]
        if hasattr(attention, "qkv"):
            parts = [part[: 2 * len(part) // 3] for part in attention.qkv.parameters()]
        else:
            parts = [*attention.q_proj.parameters(), *attention.k_proj.parameters()]
        for part in parts:
            part.mul_(math.exp(middle / 2))
        return None
