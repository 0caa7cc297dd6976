"""Closing up sequences that lost some of their tokens."""

from __future__ import annotations

from torch import Tensor

IGNORE_INDEX = -100
"""Label of a token that takes no part in the loss."""


def pack(keep: Tensor, left: bool) -> tuple[Tensor, Tensor]:
    """Close rows up. keep [B, S] -> index [B, S'] of the kept columns in order, and [B, S'] where a row reaches.

    Shorter rows are padded on the left, or on the right if `left` is False.
    """
    width = int(keep.sum(dim=1).max())
    if left:
        index = keep.int().argsort(dim=1, stable=True)[:, keep.shape[1] - width :]
    else:
        index = keep.int().argsort(dim=1, descending=True, stable=True)[:, :width]
    return index, keep.gather(1, index)
