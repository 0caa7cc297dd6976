"""Floating point operations of a LLaVA by formula, from how many tokens go into each layer.

Conventions: one multiply-accumulate is 2 FLOPs; attention is counted in full, 2 n^2 d multiply-accumulates a layer,
causal or not; only matrix products count (no norms, activations, softmax, nor a pruner's scores, which take O(n d));
the language model's head is left out, because a prefill needs it for one position only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """FLOPs for one image and one prompt.

    Attributes:
        encoder: patch embedding and every layer of the vision encoder that runs.
        projector: its linear layers over the tokens that are left.
        prefill: the language model's layers over text and visual tokens.
    """

    encoder: float
    projector: float
    prefill: float

    @property
    def total(self) -> float:
        return self.encoder + self.projector + self.prefill


def cost_of(
    vision: Any,
    language: Any,
    text_tokens: int,
    path: Sequence[int] | None = None,
    visual_tokens: int | Sequence[int] | None = None,
    projector_layers: int = 2,
    mlp_path: Sequence[int] | None = None,
) -> Cost:
    """FLOPs of answering one prompt about one image, up to the first new token's logits.

    Args:
        vision: the encoder's config (CLIPVisionConfig or alike).
        language: the language model's config (LlamaConfig or alike; LLaVA's own works).
        text_tokens: prompt tokens that are not visual.
        path: visual tokens entering each encoder layer (`trace.path(sample)`); all patches everywhere if None.
        visual_tokens: those that reach the language model, or those that enter each of its layers where some are
            dropped inside; what enters the last encoder layer if None.
        projector_layers: linear layers of the projector; the first widens, the others keep the width.
        mlp_path: visual tokens entering each encoder layer's MLP, where a method merges ahead of it
            (`Pruner.merges_inside`): the counts that leave the layers.
    """
    patches = (vision.image_size // vision.patch_size) ** 2
    path = [patches] * vision.num_hidden_layers if path is None else path
    visual_tokens = path[-1] if visual_tokens is None else visual_tokens
    if isinstance(visual_tokens, int):
        visual_tokens = [visual_tokens] * language.num_hidden_layers
    return Cost(
        encoder=encoder_flops(vision, path, mlp_path=mlp_path),
        projector=projector_flops(visual_tokens[0], vision.hidden_size, language.hidden_size, projector_layers),
        prefill=prefill_flops(language, [text_tokens + visual for visual in visual_tokens]),
    )


def encoder_flops(config: Any, path: Sequence[int], prefix: int = 1, mlp_path: Sequence[int] | None = None) -> float:
    """A ViT with two-layer MLPs. path: visual tokens entering each layer (mlp_path: its MLP); prefix: special ones."""
    width, inner = config.hidden_size, config.intermediate_size
    patches = (config.image_size // config.patch_size) ** 2
    embedding = patches * config.num_channels * config.patch_size**2 * width
    attention = sum(4 * n * width**2 + 2 * n**2 * width for n in (visual + prefix for visual in path))
    mlp = sum(2 * (visual + prefix) * width * inner for visual in (path if mlp_path is None else mlp_path))
    return 2.0 * (embedding + attention + mlp)


def merging_encoder_flops(config: Any, path: Sequence[int], left: int) -> float:
    """Qwen2-VL's ViT with its merger, for an image or frame. path: patches entering each layer; left: the merger."""
    width, unit = config.embed_dim, config.spatial_merge_size**2
    patch = config.in_channels * config.temporal_patch_size * config.patch_size**2
    layers = sum((4 + 2 * config.mlp_ratio) * n * width**2 + 2 * n**2 * width for n in path)
    merger = left // unit * (unit * width) * (unit * width + config.hidden_size)
    return 2.0 * (path[0] * patch * width + layers + merger)


def projector_flops(tokens: int, width_in: int, width_out: int, layers: int = 2) -> float:
    return 2.0 * tokens * (width_in * width_out + (layers - 1) * width_out**2) if layers else 0.0


def prefill_flops(config: Any, path: Sequence[int]) -> float:
    """A decoder with gated (three-matrix) MLPs and grouped keys and values. path: tokens entering each layer."""
    matrices, inner = _decoder_layer(config)
    return 2.0 * sum(n * matrices + 2 * n**2 * inner for n in path)


def decode_flops(config: Any, path: Sequence[int], steps: int) -> float:
    """The decoder's layers over `steps` further tokens, one by one with a KV cache. path: entries of each layer's."""
    matrices, inner = _decoder_layer(config)
    return 2.0 * sum(steps * matrices + 2 * inner * (steps * n + steps * (steps + 1) // 2) for n in path)


def _decoder_layer(config: Any) -> tuple[int, int]:
    """-> multiply-accumulates of a layer's linear maps for one token, and the width of all its heads."""
    width, heads = config.hidden_size, config.num_attention_heads
    head = getattr(config, "head_dim", None) or width // heads
    key_values = getattr(config, "num_key_value_heads", None) or heads
    return 2 * width * head * (heads + key_values) + 3 * width * config.intermediate_size, heads * head
