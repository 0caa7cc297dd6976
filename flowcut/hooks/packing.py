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
KEPT = "flowcut_kept"
"""Keyword argument by which the head hands the decoder a `Kept` to fill in."""


@dataclass(frozen=True)
class Aligned:
    """How an argument is aligned with tokens.

    Attributes:
        fill: its value on padding.
        axis: the axis of tokens: 1 for [B, S, ..], 2 for [A, B, S] (the axes of M-RoPE's position ids).
    """

    fill: Any = 0
    axis: Literal[1, 2] = 1


ALIGNED: Mapping[str, Aligned] = {"labels": Aligned(IGNORE_INDEX), IMAGE_INDEX: Aligned(-1)}
"""Arguments that are aligned with tokens in every family; see `shorten_aligned`."""


@dataclass
class Kept:
    """Which of the S columns that entered the decoder left it: index [B, S'], and real [B, S'] or None."""

    index: Tensor | None = None
    real: Tensor | None = None


def pack(keep: Tensor, left: bool) -> tuple[Tensor, Tensor]:
    """Drop columns and close the gaps. keep [B, S] -> index [B, S'] of the kept columns in order, and [B, S'], real.

    Shorter rows are padded on the left, or on the right if `left` is False; `real` is False there.
    """
    width = int(keep.sum(dim=1).max())
    if left:
        index = keep.int().argsort(dim=1, stable=True)[:, keep.shape[1] - width :]
    else:
        index = keep.int().argsort(dim=1, descending=True, stable=True)[:, :width]
    return index, keep.gather(1, index)


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
    return taken if padding is None else taken.masked_fill(~padding.to(device), how.fill)
