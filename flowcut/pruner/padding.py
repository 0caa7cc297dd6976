"""Padding at the end of rows that differ in length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from flowcut.pruner.cut import on_device

_ALIGNED = 16  # attention kernels of a GPU copy masks whose rows begin elsewhere


class Padding:
    """Where rows of `lengths` tokens, as long as the longest, have padding. One copy to the device brings all of it.

    Attributes:
        beyond: [R, S], True on padding.
        bias: [R, S], float32: what is added to an attention's logits at each key, 0 and on padding -inf.
        mask: the same, with rows that lie in memory as kernels of attention want them.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device):
        self.lengths = list(lengths)
        longest, rows = max(lengths), len(lengths)
        wide = np.arange(-(-longest // _ALIGNED) * _ALIGNED) >= np.array(lengths)[:, None]
        beyond = wide[:, :longest]
        parts = [np.where(mask, -np.inf, 0).astype(np.float32) for mask in (beyond, wide)] + [beyond]
        sizes = [part.nbytes for part in parts]
        whole = on_device(np.concatenate([np.frombuffer(part.tobytes(), np.uint8) for part in parts]), device)
        bias, mask, padding = whole.split(sizes)
        self.bias = bias.view(torch.float32).view(rows, longest)
        self.mask = mask.view(torch.float32).view(rows, -1)[:, :longest]
        self.beyond = padding.view(torch.bool).view(rows, longest)

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Padding | None:
        """None where all rows are equally long."""
        return cls(lengths, device) if len(set(lengths)) > 1 else None
