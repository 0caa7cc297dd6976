"""Floating point operations and KV cache of a LLaVA by formula, from how many tokens go into each layer.

Conventions: one multiply-accumulate is 2 FLOPs; attention is counted in full, 2 n^2 d multiply-accumulates a layer,
causal or not; only matrix products count (no norms, activations, softmax, nor a pruner's scores, which take O(n d));
the language model's head is left out, as a prefill needs it for one position only. docs/cost.md has the formulas, and
what other counts in print are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flowcut.layer_cost import layer_cost

TokenPath = Sequence[int] | Sequence[Sequence[int]]
"""Visual tokens entering each encoder layer: of an image, or of each of its tiles."""


@dataclass(frozen=True)
class Cost:
    """FLOPs for one image and one prompt.

    Attributes:
        encoder: patch embedding and every layer of the vision encoder that runs.
        projector: its linear layers over the remaining tokens.
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
    path: TokenPath | None = None,
    visual_tokens: int | Sequence[int] | None = None,
    projector_layers: int = 2,
    mlp_path: TokenPath | None = None,
    tiles: int | None = None,
    projected: int | None = None,
    patches_per_token: int = 1,
    pooled: bool = False,
    prefix: int = 1,
) -> Cost:
    """FLOPs of answering one prompt about one image, up to the first new token's logits.

    Several tiles (anyres), images or frames are as many runs of the encoder. Give a path for each of them; or sums over
    them and `tiles`, which are then taken as spread evenly. That is exact where all tiles keep equally many, and else a
    little too low: attention is quadratic, so a layer's real multiply-accumulates are more by 2 width times the sum of
    squared distances of the tiles' counts from their mean.

    Args:
        vision: the encoder's config (CLIPVisionConfig or alike).
        language: the language model's config (LlamaConfig or alike; LLaVA's own works).
        text_tokens: prompt tokens that are not visual.
        path: visual tokens entering each encoder layer (`trace.path(sample)`); all patches everywhere if None.
        visual_tokens: those that reach the language model, or those that enter each of its layers where some are
            dropped inside; what enters the last encoder layer if None.
        projector_layers: linear layers of the projector; the first widens, the others keep the width.
        mlp_path: visual tokens entering each encoder layer's MLP, where a method merges ahead of it
            (`Pruner.merges_before_mlp`): the counts that leave the layers. In the form of `path`.
        tiles: over how many tiles `path` sums; 1 if None, and there `path` may hold one path for each tile.
        projected: tokens that the projector works on; as many as enter the language model if None. Others where padding
            of tiles is taken off, or line ends are put in, after it.
        patches_per_token: how many patches of `path` become one visual token (InternVL 4, SmolVLM 4 or 9, Gemma 3 16).
        pooled: whether they are averaged (Gemma 3), or else stand side by side in what the projector reads.
        prefix: special tokens in the encoder (1 for CLIP's and InternVL's CLS, 0 for SigLIP).

    Raises:
        ValueError: `tiles` is no number >= 1 or not that of the paths, paths differ in length, or hold more tokens than
            there are patches.
    """
    patches = patches_of(vision)
    if path is None:
        path = [[patches] * vision.num_hidden_layers] * _checked_tiles(tiles)
    paths = _tile_paths(path, tiles, patches, "path")
    mlp_paths = [None] * len(paths) if mlp_path is None else _tile_paths(mlp_path, tiles, patches, "mlp_path")
    if len(mlp_paths) != len(paths):
        raise ValueError(
            f"path is for {len(paths)} tiles and mlp_path for {len(mlp_paths)}; give both for the same tiles"
        )
    if visual_tokens is None:
        visual_tokens = sum(tile[-1] for tile in paths) // patches_per_token
    if isinstance(visual_tokens, int):
        visual_tokens = [visual_tokens] * language.num_hidden_layers
    projected = visual_tokens[0] if projected is None else projected
    return Cost(
        encoder=sum(encoder_flops(vision, tile, prefix, inside) for tile, inside in zip(paths, mlp_paths, strict=True)),
        projector=projector_flops(
            projected,
            vision.hidden_size * (1 if pooled else patches_per_token),
            language.hidden_size,
            projector_layers,
        ),
        prefill=prefill_flops(language, [text_tokens + visual for visual in visual_tokens]),
    )


def _checked_tiles(tiles: int | None) -> int:
    if tiles is not None and tiles < 1:
        raise ValueError(f"tiles={tiles} is not a number of tiles >= 1; leave it out for a single one")
    return tiles or 1


def _tile_paths(path: TokenPath, tiles: int | None, patches: int, name: str) -> list[Sequence[int]]:
    """One path for each tile, from such paths or from their sum."""
    number, several = _checked_tiles(tiles), [one for one in path if isinstance(one, Sequence)]
    if several:
        if len(several) != len(path) or len({len(one) for one in several}) > 1:
            raise ValueError(
                f"{name} mixes numbers and paths, or paths of several lengths; give one path for each tile"
            )
        if tiles is not None and len(several) != number:
            raise ValueError(f"tiles={tiles}, but {name} holds {len(several)} paths; leave tiles out")
        paths = several
    else:
        totals = [one for one in path if not isinstance(one, Sequence)]
        paths = [[(total + tile) // number for total in totals] for tile in range(number)]
    most = max((count for one in paths for count in one), default=0)
    if most > patches:
        raise ValueError(
            f"{name} puts {most} tokens into an encoder of {patches} patches; give tiles= for sums over several tiles"
        )
    return paths


def _sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Of a square, or as it is given (InternVL)."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def patches_of(config: Any) -> int:
    """Patches of a picture, from a vision encoder's config."""
    height, width = (
        image // patch for image, patch in zip(_sides(config.image_size), _sides(config.patch_size), strict=True)
    )
    return height * width


def encoder_flops(config: Any, path: Sequence[int], prefix: int = 1, mlp_path: Sequence[int] | None = None) -> float:
    """A ViT with two-layer MLPs. path: visual tokens entering each layer (mlp_path: its MLP); prefix: special ones."""
    width, sides = config.hidden_size, _sides(config.patch_size)
    inner = config.intermediate_size if hasattr(config, "intermediate_size") else config.mlp_ratio * width  # DINOv2
    embedding = patches_of(config) * config.num_channels * sides[0] * sides[1] * width
    attention = sum(4 * n * width**2 + 2 * n**2 * width for n in (visual + prefix for visual in path))
    mlp = sum(2 * (visual + prefix) * width * inner for visual in (path if mlp_path is None else mlp_path))
    return 2.0 * (embedding + attention + mlp)


def merging_encoder_flops(config: Any, path: Sequence[int], left: int) -> float:
    """A ViT whose merger makes tokens of 2 x 2 patches, as in Qwen2-VL, Qwen3-VL and GLM-4.1V, for an image or frame.

    DeepStack's mergers get the patches that leave the layers they follow.

    Args:
        path: patches entering each layer.
        left: patches entering the merger.

    Raises:
        ValueError: its layers attend inside windows of the image (Qwen2.5-VL), which no formula here counts.
    """
    if hasattr(config, "window_size"):
        raise ValueError(f"{type(config).__name__} uses window attention, for which flowcut.cost has no formula")
    unit, patch = config.spatial_merge_size**2, config.in_channels * config.temporal_patch_size * config.patch_size**2
    width = getattr(config, "embed_dim", config.hidden_size)
    if hasattr(config, "mlp_ratio"):
        mlp, merger = 2 * config.mlp_ratio * width**2, unit * width * (unit * width + config.hidden_size)
    elif config.model_type.startswith("glm4v"):  # three matrices, and a convolution that joins the patches
        out = config.out_hidden_size
        mlp, merger = 3 * width * out, unit * width * out + out**2 + 3 * out * config.intermediate_size
    else:
        mlp = 2 * width * config.intermediate_size
        merger = unit * width * (unit * width + config.out_hidden_size)
    layers = sum((4 * width**2 + mlp) * n + 2 * n**2 * width for n in path)
    leaving, taps = [*path[1:], left], getattr(config, "deepstack_visual_indexes", ())
    merged = left // unit + sum(leaving[layer] // unit for layer in taps)
    return 2.0 * (path[0] * patch * width + layers + merged * merger)


def projector_flops(tokens: int, width_in: int, width_out: int, layers: int = 2) -> float:
    return 2.0 * tokens * (width_in * width_out + (layers - 1) * width_out**2) if layers else 0.0


def prefill_flops(config: Any, path: Sequence[int]) -> float:
    """A decoder with gated (three-matrix) MLPs or experts, and grouped keys. path: tokens entering each layer.

    Layers without attention (Qwen3.5) are counted by their recurrence, token by token.
    """
    costs = [layer_cost(config, layer) for layer in range(len(path))]
    return 2.0 * sum(n * cost.token + n**2 * cost.pair for n, cost in zip(path, costs, strict=True))


def decode_flops(config: Any, path: Sequence[int], steps: int) -> float:
    """The decoder's layers over `steps` further tokens, one by one with a KV cache. path: entries of each layer's."""
    costs, rest = [layer_cost(config, layer) for layer in range(len(path))], steps * (steps + 1) // 2
    return 2.0 * sum(steps * cost.token + (steps * n + rest) * cost.pair for n, cost in zip(path, costs, strict=True))


def kv_cache_bytes(config: Any, path: Sequence[int], bytes_per_value: float = 2) -> float:
    """Bytes of a decoder's KV cache for one sequence: the keys and values, grouped or not, of what entered each layer.

    A layer caches what it reads, tokens that a cut after it drops too; each further token adds one to every layer. A
    layer without attention (Qwen3.5) keeps a state of one size instead.

    Args:
        path: text and visual tokens entering each layer, as for `prefill_flops`.
        bytes_per_value: 2 in half precision, 4 in float32, below 1 for packed caches (without their scales).

    Raises:
        ValueError: `bytes_per_value` is not above 0.
    """
    if bytes_per_value <= 0:
        raise ValueError(f"bytes_per_value={bytes_per_value} is not above 0; 2 is half precision, 4 float32")
    costs = [layer_cost(config, layer) for layer in range(len(path))]
    return bytes_per_value * sum(n * cost.cached + cost.state for n, cost in zip(path, costs, strict=True))
