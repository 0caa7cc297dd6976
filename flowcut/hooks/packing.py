"""Which columns of a batch remain, and shortening everything that is aligned with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

IGNORE_INDEX = -100
"""Label of a token that takes no part in the loss."""
IMAGE_INDEX = "image_index"
"""Keyword argument of a decoder: [B, S], which image each token shows; -1 for text and padding."""
AFTER = "flowcut_after"
"""Keyword argument of a decoder: how many of the last columns come after the prompt; no method chooses by them."""
FLAT_MASK = "flowcut_flat_mask"
"""Keyword argument of a decoder whose owner prepares its masks: what they were made from, [B, P + S], or None."""
BLOCKS = "flowcut_blocks"
"""Keyword argument of a decoder: [B, S], in which block each token is, that attends in both directions; -1 in none."""
KEPT = "flowcut_kept"
"""Keyword argument by which the head hands the decoder a `Kept` to fill in."""


@dataclass(frozen=True)
class Aligned:
    """How an argument is aligned with tokens.

    Attributes:
        fill: its value on padding.
        axis: the axis of tokens: 1 for [B, S, ..], 2 for [A, B, S] (the axes of M-RoPE's position ids).
        first: the value that each row's first real token gets; None for its own.
    """

    fill: Any = 0
    axis: Literal[1, 2] = 1
    first: Any = None


# No token predicts the first one of a row; where padding comes to stand in front of it, that must not either.
ALIGNED: Mapping[str, Aligned] = {"labels": Aligned(IGNORE_INDEX, first=IGNORE_INDEX), IMAGE_INDEX: Aligned(-1)}
"""Arguments that are aligned with tokens in every family; see `shorten_aligned`."""


BY_POSITION = "logits_to_keep as a tensor of positions cannot follow dropped tokens; pass a number"


@dataclass
class Kept:
    """Which of the S columns that entered the decoder left it: index [B, S'], and real [B, S'] or None.

    by_position: whether the head is to take logits of single columns, which may not be dropped or move then.
    """

    index: Tensor | None = None
    real: Tensor | None = None
    by_position: bool = False


def pack(keep: Tensor, real: Tensor | None, from_start: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Drop columns and close the gaps.

    A row's padding after its last real column stays where it is, so that columns counted from the end mean what they
    meant before. Rows that lose more columns than others are padded in front.

    Args:
        keep: [B, S], True for real columns that stay.
        real: [B, S], False on padding; None if nothing is padded.
        from_start: rows that are padded at their end only begin at column 0 again, for a model whose callers count
            columns from the start.

    Returns:
        index [B, S'] of the columns that stay, in order; [B, S'], False on padding; and [B, S], where each column that
        stays stands among the S'.
    """
    if from_start and real is not None and not bool(real[:, -1].all()):
        index = keep.int().argsort(dim=1, descending=True, stable=True)[:, : int(keep.sum(dim=1).max())]
        return index, keep.gather(1, index), (keep.long().cumsum(dim=1) - 1).clamp_min(0)
    stays = keep
    if real is not None:
        stays = keep | (real.flip(1).long().cumsum(dim=1).flip(1) == 0)
    counts = stays.sum(dim=1, keepdim=True)
    width = int(counts.max())
    index = stays.int().argsort(dim=1, stable=True)[:, keep.shape[1] - width :]
    place = stays.long().cumsum(dim=1) - 1 + width - counts
    return index, keep.gather(1, index), place.clamp_min(0)


def last_of(real: Tensor | None, rows: int, length: int, device: torch.device) -> Tensor:
    """[B], the last real column of each row."""
    columns = torch.arange(length, device=device).expand(rows, -1)
    return columns[:, -1] if real is None else columns.masked_fill(~real, -1).max(dim=1).values


def tail_of(keep: Tensor, real: Tensor | None) -> int:
    """How many columns at the end hold no dropped one, in every row. keep [B, S], real [B, S] as in `pack`."""
    dropped = ~keep if real is None else ~keep & real
    return int(dropped.flip(1).long().cumsum(dim=1).eq(0).sum(dim=1).min())


def restarts(positions: Tensor, real: Tensor | None) -> Tensor:
    """[B, S]: in which run of consecutive position ids each column is. positions [B or 1, S], real [B, S] or None."""
    jumps = positions.diff(dim=1) != 1
    if real is not None:
        jumps = jumps & real[:, 1:] & real[:, :-1]
    return torch.nn.functional.pad(jumps.long().cumsum(dim=1), (1, 0))


def shorten_aligned(call: dict[str, Any], aligned: Mapping[str, Aligned], index: Tensor, real: Tensor | None) -> None:
    """Shorten, in place, every argument of a call that is aligned with its tokens.

    Args:
        call: keyword arguments; what is None or missing is left alone, and one row may stand for all.
        aligned: by name, how each of them is aligned.
        index: [B, S'], the columns that remain.
        real: [B, S'], False on padding; None if nothing is padded.
    """
    for name, how in aligned.items():
        if call.get(name) is not None:
            call[name] = _columns(call[name], how, index, real)


def _columns(given: Tensor, how: Aligned, index: Tensor, real: Tensor | None) -> Tensor:
    rows, device = len(index), given.device
    index = index.to(device)
    if how.axis == 2:
        whole = given.expand(-1, rows, -1)
        taken, padding = whole.gather(2, index.expand(len(whole), -1, -1)), real
    else:
        taken = given.expand(rows, *given.shape[1:])[torch.arange(rows, device=device)[:, None], index]
        padding = None if real is None else real.view(*real.shape, *[1] * (given.ndim - 2))
    if how.first is not None:
        columns = torch.ones_like(index, dtype=torch.bool) if real is None else real.to(device)
        taken = taken.masked_fill(columns & (columns.cumsum(dim=1) == 1), how.first)
    return taken if padding is None else taken.masked_fill(~padding.to(device), how.fill)
