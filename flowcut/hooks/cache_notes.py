"""What a KV cache has to remember once tokens are dropped, and how later calls are translated by it.

The caller counts the unpruned conversation, the cache holds less, and after a cut inside the language model layers
hold different numbers. The notes lie on the cache itself, and so live, are copied and die with the conversation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from flowcut.compat import CACHE, checkpoints_layers

PAST = "flowcut_past"
"""Attribute of a KV cache that holds its `Past`."""
PAST_LAYERS = "flowcut_past_layers"
"""Attribute of a KV cache that holds its list of `PastLayers`."""


@dataclass(frozen=True)
class Past:
    """How a KV cache relates to the conversation as the caller counts it.

    Attributes:
        dropped: tokens of the conversation that have no entry in the cache.
        length: entries the cache had when the last of them was dropped; later ones stand one to one.
        mask: [B, length], 1 where such an entry is real; None if all are.
    """

    dropped: int
    length: int
    mask: Tensor | None


@dataclass(frozen=True)
class PastLayers:
    """What the KV cache of the layers from `first` on holds, until the next entry of the list.

    Attributes:
        first: number of the first such layer.
        length: entries it had when this was noted; later ones stand for one later token each.
        real: [B, length], False where such an entry is padding; None if none is.
        renumbered: whether these layers count positions by their own entries.
    """

    first: int
    length: int
    real: Tensor | None
    renumbered: bool


def with_cache(call: dict[str, Any], language: Any) -> None:
    """Make the KV cache that the decoder would make for itself, to have one to leave notes on."""
    use_cache = call.get("use_cache")
    if use_cache is None:
        use_cache = language.config.use_cache
    if call.get(CACHE) is None and use_cache and not checkpoints_layers(language):
        call[CACHE] = DynamicCache(config=language.config)


def realign(call: dict[str, Any], name: str, past: Past) -> None:
    """Make the new tokens begin where the cache ends.

    generate() counts by the cache, which is shorter than the conversation it stands for: going on with an old cache
    it passes `dropped` tokens again that are cached already.
    """
    cache, tokens = call[CACHE], call[name]
    mask, positions = flat_mask(call), call.get("position_ids")
    if mask is not None:
        before = mask.shape[1] - tokens.shape[1]
    elif positions is not None:
        before = int(positions[0].max()) + 1 - tokens.shape[1]
    else:
        return
    cached = cache.get_seq_length()
    if before == cached and tokens.shape[1] > past.dropped:
        for key in ("position_ids", "mm_token_type_ids", "labels"):
            if call.get(key) is not None and call[key].shape[-1] == tokens.shape[1]:
                call[key] = call[key][..., past.dropped :]
        call[name] = tokens[:, past.dropped :]
    elif before != cached + past.dropped:
        raise ValueError(
            f"the call speaks of {before} earlier tokens, but the KV cache stands for {cached + past.dropped}; pass "
            "the attention_mask of the whole conversation, image placeholders included"
        )


def flat_mask(call: dict[str, Any]) -> Tensor | None:
    mask = call.get("attention_mask")
    if mask is not None and (isinstance(mask, dict) or mask.ndim != 2):
        shape = "per layer type" if isinstance(mask, dict) else f"of shape {tuple(mask.shape)}"
        raise ValueError(
            f"an attention_mask {shape} cannot follow dropped tokens; pass [batch, length], "
            "and in generate() no static cache"
        )
    return mask


def split_mask(
    mask: Tensor | None, past: Past | None, cached: int, rows: int, length: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """-> masks of the cached entries [B, cached] and of the new tokens [B, length], from the caller's whole mask."""
    ones = torch.ones(rows, cached + length, dtype=torch.long if mask is None else mask.dtype, device=device)
    described = past.length if past is not None else 0
    seen = ones if mask is None else mask[:, (past.dropped if past is not None else 0) :]
    if past is not None:
        known = ones[:, :described] if past.mask is None else past.mask.to(ones)
        seen = torch.cat([known, seen[:, described:]], dim=1)
    return seen[:, :cached], seen[:, cached:]
