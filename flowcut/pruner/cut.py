"""A pruner's answer: which visual tokens of each row stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

CLS = -1
"""In place of a patch position: a visual token that is no patch, such as the CLS token where a method sends it on."""


@dataclass
class Cut:
    """Which visual tokens of each row stay, and what becomes of the others. Make one with `best`, `first` or `rows`.

    Attributes:
        keep: [R, K] indices into the layer's own visual tokens. Ascending, unless `hidden` is given: then any order,
            and in an encoder `CLS` for the CLS token, or for a summary of many, as a visual token of its own.
        counts: how many entries of each row are meant; None when all K are. What lies beyond is padding.
        hidden: [R, K, D] to stand in for the kept tokens' hidden states, for methods that merge; None to take them as
            they are. In a decoder what differs from the state it stands for passes no gradient back.
        renumber: in a decoder, count the positions of the remaining tokens anew; otherwise tokens keep theirs, as they
            always do under M-RoPE.
        into: [R, n], in an encoder, for methods that merge each token into one other: the entry of `keep` that each of
            the layer's visual tokens becomes part of, -1 to drop it. Entries of `keep` name themselves, in any order.
            A remaining token is the mean of its members, weighted by their sizes; gradients flow back to all of them.
        sources: [R, n], in an encoder, beside `hidden`: as `into`, but only for the trace, which tells where patches
            went.
        before_mlp: merge between the layer's attention and its MLP, by a pruner with `merges_before_mlp`; otherwise
            after the layer.
        proportional: from the next layer on, a token counts in attention as many times as it has patches: the
            logarithm of its size is added at its key.
    """

    keep: Tensor
    counts: tuple[int, ...] | None = None
    hidden: Tensor | None = None
    renumber: bool = False
    into: Tensor | None = None
    sources: Tensor | None = None
    before_mlp: bool = False
    proportional: bool = False

    @classmethod
    def best(
        cls,
        score: Tensor,
        counts: Sequence[int],
        valid: Tensor | None = None,
        renumber: bool = False,
        beyond: Tensor | None = None,
    ) -> Cut:
        """Keep the `counts[r]` highest of each row of score [R, n]; among equals the lower position wins.

        Args:
            valid: [R, n], False for tokens that are no choice.
            renumber: see `Cut`.
            beyond: [R, K], True on the padding of rows that keep fewer than K, where that is known already.
        """
        if valid is not None:
            score = score.masked_fill(~valid, -torch.inf)
        longest = max(counts)
        keep = score.argsort(dim=1, descending=True, stable=True)[:, :longest]
        if min(counts) == longest:
            return cls(keep.sort(dim=1).values, renumber=renumber)
        if beyond is None:
            beyond = on_device(np.arange(longest) >= np.array(counts)[:, None], score.device)
        keep = keep.masked_fill(beyond, score.shape[1] - 1).sort(dim=1).values  # padding goes to the end
        return cls(keep, tuple(counts), renumber=renumber)

    @classmethod
    def first(cls, picks: Tensor, counts: Sequence[int]) -> Cut:
        """Keep the first `counts[r]` of picks [R, K], indices in the order they were chosen, no index twice."""
        return cls.rows([row[:count].sort().values for row, count in zip(picks, counts, strict=True)])

    @classmethod
    def rows(
        cls,
        keep: Sequence[Tensor],
        hidden: Sequence[Tensor] | None = None,
        into: Sequence[Tensor] | None = None,
        sources: Sequence[Tensor] | None = None,
        **fields: Any,
    ) -> Cut:
        """A cut from what is kept of each row, where rows may keep different numbers.

        Args:
            keep: for each row [K], indices into its visual tokens.
            hidden: for each row [K, D], the states that stand in for the kept tokens'.
            into, sources: for each row [n], the entry of `keep` that each of its tokens becomes part of.
            fields: other fields of the cut.
        """
        counts = tuple(len(row) for row in keep)
        return cls(
            pad_sequence(list(keep), batch_first=True),
            counts if len(set(counts)) > 1 else None,
            None if hidden is None else pad_sequence(list(hidden), batch_first=True),
            into=None if into is None else pad_sequence(list(into), batch_first=True, padding_value=-1),
            sources=None if sources is None else pad_sequence(list(sources), batch_first=True, padding_value=-1),
            **fields,
        )


def valid_mask(counts: Sequence[int], length: int, device: torch.device) -> Tensor | None:
    """[R, length], True for the first counts[r] of each row; None when every row is full."""
    if min(counts) == length:
        return None
    return on_device(np.arange(length) < np.array(counts)[:, None], device)


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """An array on a device, without waiting for the device to take it."""
    tensor = torch.from_numpy(values)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
