"""LLaVA-PruMerge and PruMerge+ (Shang et al., ICCV 2025, "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large
Multimodal Models", arXiv 2403.15388).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from flowcut import scores
from flowcut.pruner import CLS, Budget, Cut, ModelShape, OneCut, View


class Chosen(NamedTuple):
    """kept [K], patches in the order they are sent on; rest, those that the extra token sums up, ascending."""

    kept: Tensor
    rest: Tensor


def outliers(attention: Tensor) -> Tensor:
    """Which values are more than 1.5 interquartile ranges above the third quartile."""
    first, third = attention.quantile(attention.new_tensor([0.25, 0.75]))
    return attention > third + 1.5 * (third - first)


def even_places(patches: int, number: int) -> list[int]:
    """`number` places spread evenly over `patches`: the middles of equal parts."""
    return [(2 * part + 1) * patches // (2 * number) for part in range(number)]


def attention_of_next_layer(view: View) -> tuple[Tensor, Tensor]:
    """What the global token would attend to in the next layer, over its full width: [R, n], and the keys [R, S, D].

    For a pruner with `reads_hidden`. Heads are not split; softmax over special and visual tokens.
    """
    ahead = view.next_layer()
    query, keys = ahead.global_token(ahead.q).flatten(1)[:, None], ahead.k.transpose(1, 2).flatten(2)
    row = scores.softmax_row(query, keys[:, None], keys.shape[-1] ** -0.5, view.key_valid)[:, 0]
    return row[:, view.shape.num_prefix_tokens :], keys


def merge(chosen: Chosen, attention: Tensor, keys: Tensor, states: Tensor, neighbours: int) -> Tensor:
    """[K + 1, D]: every kept patch plus its neighbours' states, weighted by attention, and the extra token.

    Neighbours are the patches of most similar keys, kept ones among them, but never the patch itself. Weights are
    the attention as it is, not normalised.

    Args:
        attention, keys, states: [n], [n, d], [n, D] of one image's patches.
    """
    places = torch.cat(chosen)
    weights, values, unit = attention[places], states[places], normalize(keys[places], dim=-1)
    kept = len(chosen.kept)
    similarity = unit[:kept] @ unit.T
    own = torch.arange(kept, device=places.device)
    similarity[own, own] = -torch.inf
    near = similarity.topk(min(neighbours, len(places) - 1), dim=1).indices if kept else own.view(0, 0)
    mixing = torch.zeros_like(similarity).scatter(1, near, weights[near])
    merged = values[:kept] + mixing @ values
    extra = attention[chosen.rest] @ states[chosen.rest]
    return torch.cat([merged, extra[None]])


@dataclass(frozen=True)
class PruMerge(OneCut):
    """Keep the patches whose CLS attention is an outlier, and merge the most similar other patches into each.

    Done once, after the layer LLaVA reads its features from (the last but one). Attention is that of the layer
    after it, of which nothing but queries and keys is computed: over their full width, heads not split, softmax
    over CLS and patches. To each kept patch the features of its 32 neighbours by key similarity are added, weighted
    by attention; one extra token sums up all patches that were not kept, in the same way. Tokens follow each other
    by falling attention, the extra token comes last; the language model's positions are renumbered.

    How many: with a budget T, the T - 1 most attended and the extra token. `adaptive=True` is the published way: as
    many as are outliers (third quartile + 1.5 interquartile ranges), whatever the budget says, each
    image by its own quartiles; the budget then only leaves images alone that have no more patches. Tables with a
    token count of the published method show its mean (about 32 of 576).

    `PruMerge.plus(budget)` (`spatial=True`) is PruMerge+, which adds patches spread evenly over the picture.
    Adaptive: every third part of a step of N / outliers, from 0 on to the last patch but one, as far as not chosen
    yet, so about four times as many; an image of which more would be left than it has is not touched. With a
    budget: half of T - 1 by attention (rounded up), half spatial ones.

    Released code (github.com/42Shawn/LLaVA-PruMerge, 097c041): shares the outliers' number among a batch's images
    (`batch_coupling="shared"`; with PruMerge+ it fails), fails where PruMerge+ finds no outlier (here the extra
    token is left, as in plain PruMerge), and writes 576 patches and layer 23 into the code. In the fixed form of
    PruMerge+ it takes a patch twice that is chosen both ways, lets the copy be its own neighbour, and forgets as
    many of the lowest numbered of the other patches; so do we, for the published behaviour, unless `repeats=False`,
    which spreads the spatial patches over those that attention left. Its counts of fixed spatial patches are steps;
    here exactly as many as the budget has room for, the same where steps divide.

    Merged tokens have no source map (a patch may go into several). In the trace a token stands at its kept patch
    and the extra one at -1; among the tiles of LLaVA-NeXT tokens come back in raster order and extra ones last.
    Each tile, and each frame of a video, is treated by itself. Without a CLS token the mean of all tokens takes its
    place, which the paper does not cover. Models that merge patches themselves (Qwen2-VL) are refused. Sums are larger
    than patches, and their weights come from one sharp softmax, so two implementations of attention differ several
    times more than in a method that selects.

    Attributes:
        budget: visual tokens that reach the language model, per image (an anyres tile gets its share).
        spatial: also keep evenly spread patches (PruMerge+).
        adaptive: let outliers decide how many; the budget is then not met.
        neighbours: patches merged into each kept one.
        repeats: whether a patch chosen by attention may be taken again as a spatial one, as released; matters only
            with `spatial` and a budget.
        batch_coupling: "none" counts each image's own outliers; "shared" those of the batch, evenly divided.

    Raises:
        ValueError: a field is out of range; the encoder has no layer after the one that is read.
    """

    name: ClassVar[str] = "prumerge"
    reference: ClassVar[str] = "LLaVA-PruMerge, arXiv 2403.15388"
    presets: ClassVar = {"prumerge_plus": ("plus", "LLaVA-PruMerge+, arXiv 2403.15388")}
    reads_hidden: ClassVar[bool] = True

    spatial: bool = False
    adaptive: bool = False
    neighbours: int = 32
    repeats: bool = True
    batch_coupling: Literal["none", "shared"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours < 1:
            raise ValueError(f"neighbours={self.neighbours} is not a number of patches >= 1; the paper's is 32")
        if self.batch_coupling not in ("none", "shared"):
            raise ValueError(f"batch_coupling={self.batch_coupling!r} is not allowed; choose none or shared")

    @classmethod
    def plus(cls, budget: Budget, **fields: Any) -> PruMerge:
        """PruMerge+."""
        return cls(budget=budget, **{"spatial": True, **fields})

    def check(self, shape: ModelShape) -> None:
        shape.refuse_merging("PruMerge")
        shape.need_last_layer("PruMerge")

    def select(self, view: View, counts: Sequence[int]) -> Cut:
        attention, keys = attention_of_next_layer(view)
        keys = view.visual(keys).float()
        view.record("attention", attention)
        kept = self.counts(attention, view.counts, counts)
        states = view.visual(view.hidden)
        rows: list[tuple[Tensor, Tensor]] = []
        for number, (patches, target) in enumerate(zip(view.counts, counts, strict=True)):
            own = attention[number, :patches]
            chosen = self.choose(own, kept[number])
            if patches > max(target, len(chosen.kept)):
                merged = merge(chosen, own, keys[number, :patches], states[number, :patches].float(), self.neighbours)
                rows.append((torch.cat([chosen.kept, chosen.kept.new_full((1,), CLS)]), merged))
            else:
                rows.append((torch.arange(patches, device=states.device), states[number, :patches]))
        return Cut.rows([keep for keep, _ in rows], [tokens.to(states.dtype) for _, tokens in rows])

    def counts(self, attention: Tensor, patches: Sequence[int], targets: Sequence[int]) -> list[int]:
        """How many patches of each row are kept: by attention if adaptive, else altogether."""
        if not self.adaptive:
            return [target - 1 for target in targets]
        rows = [row[:count] for row, count in zip(attention, patches, strict=True)]
        if self.batch_coupling == "none":
            return [int(outliers(row).sum()) for row in rows]
        return [int(outliers(torch.cat(rows)).sum()) // len(rows)] * len(rows)

    def choose(self, attention: Tensor, number: int) -> Chosen:
        """The patches of one image, from its attention [n]."""
        order, patches = attention.argsort(descending=True, stable=True), len(attention)
        spread = order[:0]
        if not self.spatial or not number:
            kept = order[:number]
        elif self.adaptive:
            kept = order[:number]
            stride = max(patches // number // 3, 1)
            spread = torch.arange(0, patches - 1, stride, device=order.device)
            spread = spread[torch.isin(spread, kept, invert=True)]
        else:
            kept = order[: -(-number // 2)]
            free = torch.arange(patches, device=order.device)
            if not self.repeats:
                free = free[torch.isin(free, kept, invert=True)]
            spread = free[even_places(len(free), number - len(kept))] if number > len(kept) else spread
        kept = torch.cat([kept, spread])
        rest = torch.arange(patches, device=order.device)
        rest = rest[torch.isin(rest, kept, invert=True)]
        return Chosen(kept, rest[len(kept) + len(rest) - patches :])
