"""Merging tokens between a layer's attention and its MLP, where a hook on the whole layer does not reach.

A layer computes h = x + attention(x) and returns h + branch(h), the branch being a norm and an MLP. To merge in
between, one hook hands the branch the merged tokens m in the place of h, and another, after it, brings the branch's
result back to the length of h: where a merged token has its place it returns branch(m) + m - h, elsewhere h. The
layer's own sum then holds m + branch(m) there, and the cut after the layer takes these places alone. No line of a
foreign forward is replaced.

The layer learns of it through the argument it passes on to its attention, `attention_mask`, in whose place stands a
`LayerContext`. When gradient checkpointing calls the layer again, the context still says what was merged.

What is modified on an instance, until the pruner is removed: hooks on the first and the last module of each layer's
second branch (`Encoder.branches`); nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from flowcut.hooks.base import opaque
from flowcut.pruner import Cut, valid_mask

_ALIGNED = 8  # flash attention takes head widths that are multiples of this


@dataclass
class Merge:
    """How tokens of a flattened batch become fewer.

    Attributes:
        index: [T'], the place of each token that stays.
        into: [T], which of those each token becomes part of; T' for padding, which goes nowhere.
        weight: [T], its share in that token.
        sums: [T'], the sizes of the tokens that stay, special ones included; None where the rows differ in length.
    """

    index: Tensor
    into: Tensor
    weight: Tensor
    sums: Tensor | None = None

    def __call__(self, flat: Tensor) -> Tensor:
        """[T, D] -> [T', D], weighted sums, added up in float32 or better."""
        wide = torch.promote_types(flat.dtype, torch.float32)
        if self.sums is not None:
            merged = flat.new_zeros(len(self.index), flat.shape[1], dtype=wide)
            return merged.index_add(0, self.into, flat.to(wide) * self.weight[:, None]).to(flat.dtype)
        total = flat.new_zeros(len(self.index) + 1, flat.shape[1], dtype=wide)
        return total.index_add(0, self.into, flat.to(wide) * self.weight[:, None].to(wide))[:-1].to(flat.dtype)


@dataclass
class TokenSizes:
    """What the tokens of a batch are made of.

    Attributes:
        sizes: [R, n], how many patches each visual token stands for.
        sources: [R, N], for each patch of the original grid the visual token it is part of; -1 if it was dropped.
        proportional: whether a token counts in attention as many times as its size says.
        dropped: whether a patch may be part of no token.
    """

    sizes: Tensor
    sources: Tensor
    proportional: bool = False
    dropped: bool = True

    @classmethod
    def of(cls, positions: Tensor, counts: Sequence[int], whole: int) -> TokenSizes:
        """For tokens [R, n] at these positions of a grid of `whole` patches, none of them merged."""
        rows, length = positions.shape
        numbers = torch.arange(length, device=positions.device).expand(rows, length)
        valid = valid_mask(counts, length, positions.device)
        place = positions if valid is None else positions.masked_fill(~valid, whole)
        sources = positions.new_full((rows, whole + 1), -1).scatter(1, place, numbers)[:, :-1]
        new = valid is None and length == whole
        return cls(torch.ones(rows, length, device=positions.device), sources, dropped=not new)

    def update(self, cut: Cut, before: Sequence[int], after: Sequence[int], merge: Merge | None = None) -> None:
        """Enter a cut by which rows of `before` tokens become rows of `after`; `merge`: how, where it is known."""
        self.proportional = self.proportional or cut.proportional
        self.dropped = self.dropped or cut.into is None or cut.drops
        if merge is not None and merge.sums is not None and cut.into is not None and not self.dropped:
            self.sizes = merge.sums.view(len(cut.keep), -1)[:, -cut.keep.shape[1] :]
            self.sources = cut.into.gather(1, self.sources)
            return
        into = _joined(cut, before, after)
        rows, length = cut.keep.shape
        bin_of = into.masked_fill(into < 0, length)
        self.sizes = self.sizes.new_zeros(rows, length + 1).scatter_add(1, bin_of, self.sizes)[:, :-1]
        moved = into.gather(1, self.sources.clamp_min(0))
        self.sources = moved.masked_fill(self.sources < 0, -1)

    def log_sizes(self, prefix: int, counts: Sequence[int], packed: bool) -> Tensor | None:
        """[R, S] for all tokens, special ones and padding counted once; [1, sum S] for packed rows."""
        if not self.proportional:
            return None
        even = len(set(counts)) == 1  # else sizes are 0 on padding
        logs = pad((self.sizes if even else self.sizes.clamp_min(1)).log(), (prefix, 0))
        if not packed:
            return logs
        return _flat(logs, [prefix + count for count in counts])[None]


def merge_of(cut: Cut, sizes: Tensor, prefix: int, before: Sequence[int], after: Sequence[int], packed: bool) -> Merge:
    """The merge that a cut asks for, for rows that lie one after the other (packed), or padded to the longest."""
    alike = cut.weights is None and len(set(before)) == len(set(after)) == 1
    if cut.into is not None and alike and not (cut.drops or packed):
        return _merge_of_batch(cut.keep, cut.into, sizes, prefix)
    into, device = _joined(cut, before, after), cut.keep.device
    ahead = torch.arange(prefix, device=device).expand(len(into), prefix)
    lengths = [prefix + count for count in before] if packed else [prefix + into.shape[1]] * len(into)
    left = [prefix + count for count in after]
    place = torch.cat([ahead, cut.keep + prefix], dim=1) + _starts(lengths, device)[:, None]
    target = torch.cat([ahead, into + prefix], dim=1) + _starts(left, device)[:, None]
    target = target.masked_fill(pad(into < 0, (prefix, 0)), sum(left))
    share = pad(sizes if cut.weights is None else sizes * cut.weights, (prefix, 0), value=1.0)
    target, share = (_flat(tensor, lengths) for tensor in (target, share))
    sums = share.new_zeros(sum(left) + 1).index_add(0, target, share)
    # Padding counts 0 and goes nowhere; 0 / 0 there would turn gradients into NaN.
    return Merge(_flat(place, left), target, share / sums.clamp_min(torch.finfo(sums.dtype).tiny)[target])


def _merge_of_batch(keep: Tensor, into: Tensor, sizes: Tensor, prefix: int) -> Merge:
    """`merge_of` for equally long rows that merge equally many of their tokens and drop none."""
    rows, left = len(keep), prefix + keep.shape[1]
    ahead = torch.arange(prefix, device=keep.device).expand(rows, prefix)
    place, target = (torch.cat([ahead, part + prefix], dim=1) if prefix else part for part in (keep, into))
    if rows > 1:
        place = place + torch.arange(0, rows * target.shape[1], target.shape[1], device=keep.device)[:, None]
        target = target + torch.arange(0, rows * left, left, device=keep.device)[:, None]
    target, share = target.flatten(), pad(sizes, (prefix, 0), value=1.0).flatten()
    sums = share.new_zeros(rows * left).index_add(0, target, share)
    return Merge(place.flatten(), target, share / sums[target], sums)


def _starts(lengths: Sequence[int], device: torch.device) -> Tensor:
    """[R], where each row begins when they lie one after the other. Made on the device where rows are equally long."""
    if len(set(lengths)) == 1:
        return torch.arange(len(lengths), device=device) * lengths[0]
    return torch.tensor([sum(lengths[:row]) for row in range(len(lengths))], device=device)


def _flat(rows: Tensor, lengths: Sequence[int]) -> Tensor:
    """The first `lengths[r]` of each row of [R, S], one after the other."""
    valid = valid_mask(lengths, rows.shape[1], rows.device)
    return rows.flatten() if valid is None else rows[valid]


def _joined(cut: Cut, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """[R, n], the entry of `cut.keep` that each token becomes part of; -1 if it is dropped, and for padding."""
    told = cut.sources if cut.into is None else cut.into
    if told is not None:
        valid = valid_mask(before, told.shape[1], told.device)
        return told if valid is None else told.masked_fill(~valid, -1)
    rows, kept = cut.keep.shape
    longest = max(before)
    full = valid_mask(after, kept, cut.keep.device)
    place = cut.keep if full is None else cut.keep.masked_fill(~full, longest)
    place = place.masked_fill(place < 0, longest)
    numbers = torch.arange(kept, device=cut.keep.device).expand(rows, kept)
    return cut.keep.new_full((rows, longest + 1), -1).scatter(1, place, numbers)[:, :-1]


@dataclass
class LayerContext:
    """In the place of an attention mask: what one call of a layer has to know about its tokens.

    Attributes:
        mask: the attention mask proper.
        log_sizes: [rows, S], what is added to the attention's logits at each key; None for nothing.
        merge: how to merge after the attention, known as soon as the pruner has seen q, k and v.
        before: [.., S, D], the tokens before the merge while the branch runs; `after`: [T', D], those after it.
    """

    mask: Any
    log_sizes: Tensor | None = None
    merge: Merge | None = None
    before: Tensor | None = None
    after: Tensor | None = None


LAYER_CONTEXT: ContextVar[LayerContext | None] = ContextVar("flowcut_layer_context", default=None)
"""The context of the layer whose attention ran last in this thread."""


def weighed(
    query: Tensor, key: Tensor, value: Tensor, log_sizes: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [rows, H, S, d], widened so that scaling * q·k has log_sizes [rows, S] added at every key.

    One more entry of the keys holds it, which meets a 1 in the queries. So any implementation of attention will do, and
    none needs a mask of S x S entries. Values are widened with zeros, to be cut off from the result.
    """
    extra = (log_sizes / scaling).to(key.dtype)[:, None, :, None].expand(*key.shape[:3], 1)
    ones = query.new_ones(1, 1, 1, 1).expand(*query.shape[:3], 1)
    room = (0, _ALIGNED - 1)
    return (
        torch.cat([query, pad(ones, room)], dim=-1),
        torch.cat([key, pad(extra, room)], dim=-1),
        pad(value, (0, _ALIGNED)),
    )


class BranchHooks:
    """The two hooks on a layer's second branch: `enter` before its norm, `leave` after its last module."""

    @opaque
    def enter(self, module: nn.Module, args: tuple) -> tuple | None:
        context = LAYER_CONTEXT.get()
        if context is None or context.merge is None:
            return None
        context.before = args[0]
        context.after = context.merge(args[0].flatten(0, -2))
        return (context.after[None], *args[1:])

    @opaque
    def leave(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        context = LAYER_CONTEXT.get()
        LAYER_CONTEXT.set(None)
        if context is None or context.merge is None:
            return None
        assert context.before is not None
        assert context.after is not None
        index, before = context.merge.index, context.before.flatten(0, -2)
        wide = torch.promote_types(output.dtype, torch.float32)
        moved = output.flatten(0, -2).to(wide) + (context.after.to(wide) - before[index].to(wide))
        result = before.index_copy(0, index, moved.to(before.dtype))
        shape, context.before, context.after = context.before.shape, None, None
        return result.view(shape)
