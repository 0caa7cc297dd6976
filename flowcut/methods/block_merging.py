"""Methods that merge a few tokens in every block of the encoder, as ToMe does: how many where is settled here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from flowcut.pruner import Cut, ModelShape, Pruner, View


def most(patches: int) -> int:
    """How many tokens a block can merge away at most: half of those that are not protected."""
    return patches // 2


def rows_cut(rows: Sequence[tuple[Tensor, Tensor]]) -> Cut:
    """One cut from each row's keep [K] and into [n]."""
    return Cut.rows([keep for keep, _ in rows], into=[into for _, into in rows])


class BlockMerging(Pruner):
    """Merge tokens between attention and MLP of every encoder block but the last, until the budget is left.

    Merges are spread over the blocks by `weight`, the first blocks taking what does not divide. A block merges half of
    its tokens at most; where its share would then miss the budget, early blocks merge more. Derive a frozen dataclass
    with the field below, and answer `merge`. The field is not declared here, so that a class sets its order.

    Attributes:
        proportional: let tokens count in attention by their sizes.

    Raises:
        ValueError: the budget is not to be met by halving in every block; the encoder's layers are laid out in another
            way (Qwen2-VL).
    """

    proportional: bool

    @property
    def merges_before_mlp(self) -> bool:
        return True

    def check(self, shape: ModelShape) -> None:
        shape.refuse_merging(type(self).__name__)
        for encoder in shape.encoders:
            if self.merges_before_mlp and not encoder.merges_before_mlp:
                raise ValueError(f"{type(self).__name__} cannot merge inside the layers of this {encoder.name}")

    def least_budget(self, tokens: int, shape: ModelShape) -> int:
        left = super().least_budget(tokens, shape)
        for encoder in shape.encoders:
            patches = tokens - encoder.num_forwarded_special_tokens
            for _ in range(encoder.layers - 1):
                patches -= most(patches)
            left = max(left, patches + encoder.num_forwarded_special_tokens)
        return left

    def goals(self, view: View) -> list[int]:
        """How many patches of each row are to be left."""
        return [min(pair) for pair in zip(view.counts, self.targets(view.rows, view.shape), strict=True)]

    def vision(self, view: View) -> Cut | None:
        last, goals = view.layers - 2, self.goals(view)
        if view.layer > last or goals == list(view.counts):
            return None
        pairs = zip(view.counts, goals, strict=True)
        numbers = [self.number(patches, goal, view.layer, last) for patches, goal in pairs]
        if not any(numbers):
            return None
        return replace(self.merge(view, numbers), before_mlp=True, proportional=self.proportional)

    def merge(self, view: View, numbers: Sequence[int]) -> Cut:
        """Merge `numbers[r]` tokens of each row away. Only called where there is something to merge."""
        raise NotImplementedError

    def weight(self, block: int, last: int) -> float:
        """What share of the merges falls to a block of those from 0 to `last`."""
        return 1.0

    def number(self, patches: int, goal: int, layer: int, last: int) -> int:
        """How many of a row's tokens are merged away in a block, for `goal` patches after block `last`.

        Raises:
            ValueError: the goal is out of reach.
        """
        cap = most(patches)
        weights = [self.weight(block, last) for block in range(layer, last + 1)]
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


def _reaches(patches: int, goal: int, blocks: int) -> bool:
    """Whether halving in every block gets there."""
    for _ in range(blocks):
        patches -= most(patches)
    return patches <= goal
