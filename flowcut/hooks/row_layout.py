"""Where rows of different length lie when they are packed one after the other, and when they are padded.

What is here follows from the lengths alone, so it is worked out on the host, once for each selection, and handed to the
device without waiting for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from flowcut.pruner.cut import on_device

_MOST_PADDING = 256
_LARGEST_SHARE = 6


def little_padding(lengths: Sequence[int]) -> bool:
    """Whether padding rows costs less than packing them, which is about a dozen operator calls a layer.

    256 tokens take a GPU less time than these in a CLIP-L. On a CPU calls cost next to nothing, hence the other bound:
    at most a sixth of the tokens.
    """
    places = max(lengths) * len(lengths)
    return places - sum(lengths) <= min(_MOST_PADDING, places // _LARGEST_SHARE)


class RowLayout:
    """Rows of `lengths` tokens, in one sequence of their sum, or each padded at its end to the longest."""

    def __init__(self, lengths: Sequence[int], device: torch.device):
        self.lengths = list(lengths)
        self.device = device

    @property
    def starts(self) -> np.ndarray:
        """[R], where each row begins in the sequence."""
        return np.cumsum([0, *self.lengths[:-1]])

    @cached_property
    def padded(self) -> Tensor:
        """[R * S], the token of the sequence in each place of the padded rows; in padding, the row's last one."""
        columns = np.minimum(np.arange(max(self.lengths)), np.array(self.lengths)[:, None] - 1)
        return on_device((columns + self.starts[:, None]).ravel(), self.device)

    @cached_property
    def packed(self) -> Tensor:
        """[sum S], the place in the padded rows of each token of the sequence."""
        real = np.arange(max(self.lengths)) < np.array(self.lengths)[:, None]
        return on_device(real.ravel().nonzero()[0], self.device)

    def pad(self, tokens: Tensor) -> Tensor:
        """[sum S, ..] -> [R, S, ..]; what lies on padding means nothing."""
        return tokens.index_select(0, self.padded).unflatten(0, (len(self.lengths), -1))

    def pack(self, rows: Tensor) -> Tensor:
        """[R, S, ..] -> [sum S, ..]."""
        return rows.flatten(0, 1).index_select(0, self.packed)
