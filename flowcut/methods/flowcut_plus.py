"""FlowCut+: this project's own method. Tokens are merged where the information flow is low, and the budget is a cover.

FlowCut drops patches on the way through the encoder. FlowCut+ merges them, so that later layers read fewer tokens and
nothing is lost at once, and lets the tokens that leave the encoder stand for all others. docs/flowcut_plus.md has what
was measured, also what was not shown: that the flow contributes (`alpha`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from flowcut import scores
from flowcut.methods.scope import most_covering
from flowcut.pruner import Cut, ModelShape, Pruner, View, valid_mask


@dataclass(frozen=True)
class FlowCutPlus(Pruner):
    """Merge cheap pairs of tokens in every block, then pick the tokens that cover the rest.

    Between attention and MLP of each block up to the last but one:

    1. *Flow.* A token's flow is the CLS token's attention to it times its value strength, scaled to mean 1, averaged
       with its past (FlowCut, equations 4 to 6, without the semantic criterion). Its mass is its size, the number of
       patches it stands for, times the flow to the power `alpha`.
    2. *Merging*, in all blocks but the last of these. Tokens at even places have an edge to each token at an odd place
       (ToMe's bipartite matching). An edge costs (1 - cos) m_i m_j / (m_i + m_j), which is Ward's criterion for keys
       of length 1 and masses m. Each even token keeps its cheapest edge, and the cheapest of these are merged. How many
       tokens remain falls from block to block, until budget + `lead` * patches remain.
    3. *Cover*, in the last of these blocks. `budget` tokens are picked one after the other, each the one that most
       raises the mass-weighted coverage (the sum of m_i times the cosine to the nearest pick: facility location).
       Every other token is merged into the pick it is most similar to.

    A merged token is the mean of its members weighted by size, and from the next block on the logarithm of its size is
    added to the attention logits at its key (ToMe's proportional attention). The combination and its constants are this
    project's.

    Without a class token the mean of all tokens takes its place (FlowCut, section 3.1). Each anyres tile and each video
    frame merges for itself, up to its share of the budget. Positions are renumbered, in the order of the picks' places.

    Attributes:
        budget: visual tokens that reach the language model, per image (an anyres tile gets its share).
        alpha: power of the flow in a token's mass; 0 leaves sizes alone.
        lead: how many more tokens than the budget enter the last cut, as a share of the patches.
        steepness: 1 merges the same share of tokens in each block, 0 the same number; in between a mean of both.
        history: weight of the past in the flow.

    Raises:
        ValueError: a field is out of range; the model joins patches itself; layers are laid out in another way.
    """

    name: ClassVar[str] = "flowcut_plus"
    reference: ClassVar[str] = "FlowCut+, this project"

    alpha: float = 0.25
    lead: float = 1 / 9
    steepness: float = 1.0
    history: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alpha >= 0:
            raise ValueError(f"alpha={self.alpha} is not a power >= 0; use 0.25, or 0 for sizes alone")
        for name in ("lead", "steepness"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is not in 0 ... 1")
        if not 0 <= self.history < 1:
            raise ValueError(f"history={self.history} is not a weight in [0, 1); FlowCut's is 0.5")

    @property
    def merges_before_mlp(self) -> bool:
        return True

    def check(self, shape: ModelShape) -> None:
        shape.refuse_merging("FlowCut+")
        for encoder in shape.encoders:
            if not encoder.merges_before_mlp:
                raise ValueError(f"FlowCut+ cannot merge inside the layers of this {encoder.name}")

    def vision(self, view: View) -> Cut | None:
        last = view.layers - 2
        goals = [min(pair) for pair in zip(view.counts, self.targets(view.rows, view.shape), strict=True)]
        if view.layer > last or goals == list(view.counts):
            return None
        sizes = view.memory.setdefault("sizes", torch.ones_like(view.positions, dtype=torch.float32))
        mass = sizes
        if self.alpha:
            flow = view.memory["flow"] = scores.running_mean(view.memory.get("flow"), self.flow(view), self.history)
            view.record("flow", flow)
            mass = flow**self.alpha * sizes
        keys = normalize(view.visual(view.k).float().mean(dim=1), dim=-1)
        if view.layer == last:
            keep, into = cover(keys, mass, goals, view.valid)
        else:
            patches = [height * width for height, width in view.rows.grids]
            counts = [
                self.count(number, goal + round(self.lead * whole), last - view.layer)
                for number, goal, whole in zip(view.counts, goals, patches, strict=True)
            ]
            if counts == list(view.counts):
                return None
            keep, into = merge_pairs(keys, mass, view.counts, counts)
            goals = counts
        self.carry(view, into, keep.shape[1])
        uneven = tuple(goals) if len(set(goals)) > 1 else None
        return Cut(keep, uneven, into=into, before_mlp=True, proportional=True)

    def flow(self, view: View) -> Tensor:
        """[R, n], this layer's flow through each token; its mean over an image's tokens is 1."""
        flow = view.global_attention() * scores.value_strength(view.visual(view.v))
        if view.valid is not None:
            flow = flow.masked_fill(~view.valid, 0)
        number = torch.tensor(view.counts, device=flow.device)[:, None]
        return scores.normalise(flow) * number

    def count(self, tokens: int, target: int, left: int) -> int:
        """How many tokens remain after a block with `left` blocks to go, itself counted, until there are `target`."""
        if tokens <= target:
            return tokens
        share, number = tokens * (target / tokens) ** (1 / left), tokens - (tokens - target) / left
        wanted = round(self.steepness * share + (1 - self.steepness) * number)
        return max(wanted, tokens - tokens // 2)

    def carry(self, view: View, into: Tensor, length: int) -> None:
        """Note sizes and flow of the tokens that remain."""
        bins = into.masked_fill(into < 0, length)
        before, memory = view.memory["sizes"], view.memory

        def total(values: Tensor) -> Tensor:
            return values.new_zeros(len(values), length + 1).scatter_add(1, bins, values)[:, :-1]

        memory["sizes"] = total(before)
        if self.alpha:
            memory["flow"] = total(memory["flow"] * before) / memory["sizes"].clamp_min(1)


def merge_pairs(keys: Tensor, mass: Tensor, counts: Sequence[int], remaining: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Merge the cheapest pairs of an even and an odd place by Ward's criterion.

    Args:
        keys: [R, n, d], of length 1.
        mass: [R, n].
        counts: tokens of each row; what lies beyond is padding.
        remaining: how many are to remain of each row, at least half of them.

    Returns:
        keep [R, K], the places that remain, ascending, and into [R, n]; see `Cut`.
    """
    length = mass.shape[1]
    places = torch.arange(length, device=mass.device)
    even, odd = mass[:, ::2, None], mass[:, None, 1::2]
    price = (1 - keys[:, ::2] @ keys[:, 1::2].mT) * (even * odd / (even + odd).clamp_min(scores.TINY))
    valid = valid_mask(counts, length, mass.device)
    if valid is not None:
        price = price.masked_fill(~(valid[:, ::2, None] & valid[:, None, 1::2]), torch.inf)
    least, partner = price.min(dim=2)
    rank = least.argsort(dim=1, stable=True).argsort(dim=1)
    number = torch.tensor([[n - left] for n, left in zip(counts, remaining, strict=True)], device=mass.device)
    stays = torch.ones_like(mass, dtype=torch.bool) if valid is None else valid.clone()
    stays[:, ::2] &= rank >= number
    keep = places.masked_fill(~stays, length).sort(dim=1).values[:, : max(remaining)]
    into = stays.long().cumsum(dim=1) - 1
    joined = into.gather(1, partner * 2 + 1)
    into[:, ::2] = torch.where(stays[:, ::2], into[:, ::2], joined)
    if valid is not None:
        into = into.masked_fill(~valid, -1)
    return keep.masked_fill(keep == length, 0), into


def cover(keys: Tensor, mass: Tensor, counts: Sequence[int], valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Pick tokens that cover the mass of their row best, `counts[r]` of them; the others join their nearest pick.

    Args:
        keys: [R, n, d], of length 1.
        mass: [R, n].
        valid: [R, n], False on padding; None where there is none.

    Returns:
        keep [R, K], ascending, and into [R, n]; see `Cut`.
    """
    rows, length = mass.shape
    similarity = keys @ keys.mT
    picks = most_covering(similarity, torch.ones_like(mass), max(counts), valid, mass)
    full = valid_mask(counts, max(counts), mass.device)
    if full is not None:
        picks = picks.masked_fill(~full, length)
    keep = picks.sort(dim=1).values
    near = similarity.gather(2, keep.clamp_max(length - 1)[:, None].expand(-1, length, -1))
    near = near.masked_fill((keep == length)[:, None], -torch.inf)
    into = torch.nn.functional.pad(near.argmax(dim=2), (0, 1))
    numbers = torch.arange(keep.shape[1], device=mass.device).expand(rows, -1)
    into = into.scatter(1, keep, numbers)[:, :-1]  # equal tokens could name each other
    if valid is not None:
        into = into.masked_fill(~valid, -1)
    return keep.masked_fill(keep == length, 0), into
