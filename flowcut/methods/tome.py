"""ToMe (Bolya et al., ICLR 2023, "Token Merging: Your ViT But Faster", arXiv 2210.09461)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from flowcut.pruner import Cut, ModelShape, Pruner, View


class Matching(NamedTuple):
    """Places in the sequence, special tokens counted: [R, .] tokens of set A that stay, that go, and where to."""

    stays: Tensor
    goes: Tensor
    into: Tensor


def most(patches: int) -> int:
    """How many tokens a block can merge away at most: half of those that are not protected."""
    return patches // 2


def match(metric: Tensor, number: int, prefix: int) -> Matching:
    """Bipartite soft matching (section 3, steps 1 to 5).

    Tokens at even places form set A, the others B. Each of A has an edge to the token of B it resembles most
    (cosine); the `number` strongest edges are merged.

    Args:
        metric: [R, S, d], what tokens are compared by.
        prefix: how many special tokens stand in front. They neither go nor take others in (the paper protects the
            class token, which is in A, and says the latter of a distillation token, which is in B).
    """
    unit = normalize(metric, dim=-1)
    similarity = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    similarity[:, : (prefix + 1) // 2] = -torch.inf
    similarity[:, :, : prefix // 2] = -torch.inf
    best, partner = similarity.max(dim=2)
    order = best.argsort(dim=1, descending=True, stable=True)
    goes, stays = order[:, :number], order[:, number:]
    if prefix:
        stays = stays.sort(dim=1).values
    return Matching(stays * 2, goes * 2, partner.gather(1, goes) * 2 + 1)


def left_behind(matching: Matching, tokens: int, prefix: int) -> tuple[Tensor, Tensor]:
    """-> keep [R, K], patches in their new order (what stays of A, then B); into [R, n], see `Cut.into`."""
    rows = len(matching.stays)
    odd = torch.arange(1, tokens, 2, device=matching.stays.device).expand(rows, -1)
    # Special tokens come first in their set: those of A because it is in order then, those of B anyway.
    keep = torch.cat([matching.stays[:, (prefix + 1) // 2 :], odd[:, prefix // 2 :]], dim=1)
    numbers = torch.arange(keep.shape[1], device=keep.device).expand(rows, -1)
    into = keep.new_zeros(rows, tokens).scatter(1, keep, numbers)
    into = into.scatter(1, matching.goes, into.gather(1, matching.into))
    return keep - prefix, into[:, prefix:]


@dataclass(frozen=True)
class ToMe(Pruner):
    """Merge similar tokens, a few in every block of the encoder, until the budget is left.

    In each block but the last one, between attention and MLP: of the tokens at even places, those most similar to
    one at an odd place (keys, mean over heads, cosine) join it; what is merged is the mean, weighted by how many
    patches each stands for, and these sizes are carried on. In later blocks the logarithm of the size is added to
    the attention's logits (section 3, "proportional attention"), without which the method needs training. Merges
    are spread evenly over the blocks, the first ones taking what does not divide: 16.7 a block for 192 of CLIP-L's
    576, 19.5 for 128, 22.3 for 64. A block can merge half of its tokens; where an even share would then miss the
    budget, early blocks merge more.

    Released code (facebookresearch/ToMe; not read, this follows its description and recorded numbers): a constant
    number a block, no target. Published results for LLaVA do not say how they were made, and one of them, at 64
    tokens, is far below what a careful run gives.

    What is merged stands where the token at the odd place was, so kept positions do not ascend, and the language
    model sees tokens in the matching's order; positions are renumbered. `trace.members(row)` tells which patches
    made each token. Merging laws: every patch is in exactly one token, sizes sum to the number of patches, and a
    block leaves the sum of size times token as it was.

    Without a class token nothing is protected. Tiles of an anyres image are merged each for itself, and put back on
    the grid where their odd-placed tokens stood; frames of a video too. Kept and merged tokens pass gradients back.

    Attributes:
        budget: visual tokens that reach the language model, per image (an anyres tile gets its share).
        merge_site: "vit", as published; "output" merges everything after the last but one layer instead, in as
            many rounds as halving takes, which saves the encoder nothing.
        proportional: let tokens count in attention by their sizes.
        inflect: 0 merges equally many in each block; 1 none in the first and twice the mean in the last; -1 the
            reverse.

    Raises:
        ValueError: a field is out of range; the budget is not to be met by halving in every block; the encoder's
            layers are laid out in another way (Qwen2-VL).
    """

    name: ClassVar[str] = "tome"
    reference: ClassVar[str] = "ToMe, arXiv 2210.09461"

    merge_site: Literal["vit", "output"] = "vit"
    proportional: bool = True
    inflect: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.merge_site not in ("vit", "output"):
            raise ValueError(f"merge_site={self.merge_site!r} is not allowed; choose vit or output")
        if not -1 <= self.inflect <= 1:
            raise ValueError(f"inflect={self.inflect} is not in -1 ... 1; 0 merges equally many in each block")

    @property
    def merges_before_mlp(self) -> bool:
        return self.merge_site == "vit"

    def check(self, shape: ModelShape) -> None:
        shape.refuse_merging("ToMe")
        for encoder in shape.encoders:
            if self.merges_before_mlp and not encoder.merges_before_mlp:
                raise ValueError(f"ToMe cannot merge inside the layers of this {encoder.name}")

    def least_budget(self, tokens: int, shape: ModelShape) -> int:
        left = super().least_budget(tokens, shape)
        if self.merge_site == "output":
            return left
        for encoder in shape.encoders:
            patches = tokens - encoder.num_forwarded_special_tokens
            for _ in range(encoder.layers - 1):
                patches -= most(patches)
            left = max(left, patches + encoder.num_forwarded_special_tokens)
        return left

    def vision(self, view: View) -> Cut | None:
        last = view.layers - 2
        goals = [min(pair) for pair in zip(view.counts, self.targets(view.rows, view.shape), strict=True)]
        if view.layer > last or goals == list(view.counts):
            return None
        if self.merge_site == "output":
            return _cut([_rounds(view, row, goal) for row, goal in enumerate(goals)]) if view.layer == last else None
        pairs = zip(view.counts, goals, strict=True)
        numbers = [self.number(patches, goal, view.layer, last) for patches, goal in pairs]
        if not any(numbers):
            return None
        return replace(_step(view, numbers), before_mlp=True, proportional=self.proportional)

    def number(self, patches: int, goal: int, layer: int, last: int) -> int:
        """How many of a row's tokens are merged away in a block, for `goal` patches after block `last`.

        Raises:
            ValueError: the goal is out of reach.
        """
        cap = most(patches)
        weights = [1 + self.inflect * (2 * block / max(last, 1) - 1) for block in range(layer, last + 1)]
        share = weights[0] / sum(weights) if sum(weights) > 0 else 1.0
        number = min(math.ceil((patches - goal) * share - 1e-9), cap, patches - goal)
        while number < cap and not _reaches(patches - number, goal, last - layer):
            number += 1
        if not _reaches(patches - number, goal, last - layer):
            raise ValueError(
                f"{patches} patches cannot be merged into {goal} by halving them in each of the {last - layer + 1} "
                "blocks that are left; use a larger budget"
            )
        return number


def _step(view: View, numbers: Sequence[int]) -> Cut:
    """Merge that many tokens of each row; rows of one length that merge equally many go together."""
    metric, prefix = view.k.float().mean(dim=1), view.shape.num_prefix_tokens
    tokens = [prefix + count for count in view.counts]
    if len(set(tokens)) == len(set(numbers)) == 1:
        keep, into = left_behind(match(metric, numbers[0], prefix), tokens[0], prefix)
        return Cut(keep, into=into)
    rows = []
    for row, (length, number) in enumerate(zip(tokens, numbers, strict=True)):
        matching = match(metric[row : row + 1, :length], number, view.shape.num_prefix_tokens)
        keep, into = left_behind(matching, length, view.shape.num_prefix_tokens)
        rows.append((keep[0], into[0]))
    return _cut(rows)


def _reaches(patches: int, goal: int, blocks: int) -> bool:
    """Whether halving in every block gets there."""
    for _ in range(blocks):
        patches -= most(patches)
    return patches <= goal


def _rounds(view: View, row: int, goal: int) -> tuple[Tensor, Tensor]:
    """keep [K] and into [n] of one row, merged round by round until `goal` patches remain."""
    prefix, count = view.shape.num_prefix_tokens, view.counts[row]
    metric = view.k[row : row + 1, :, : prefix + count].float().mean(dim=1)
    sizes = metric.new_ones(count)
    keep = into = torch.arange(count, device=metric.device)
    while count > goal:
        number = min(count - goal, most(count))
        kept, joined = (part[0] for part in left_behind(match(metric, number, prefix), prefix + count, prefix))
        keep, into, count = keep[kept], joined[into], len(kept)
        total = sizes.new_zeros(count).index_add(0, joined, sizes)
        patches = metric.new_zeros(count, metric.shape[2]).index_add(0, joined, metric[0, prefix:] * sizes[:, None])
        metric = torch.cat([metric[:, :prefix], (patches / total[:, None])[None]], dim=1)
        sizes = total
    return keep, into


def _cut(rows: Sequence[tuple[Tensor, Tensor]]) -> Cut:
    """One cut from each row's keep and into."""
    return Cut.rows([keep for keep, _ in rows], into=[into for _, into in rows])
