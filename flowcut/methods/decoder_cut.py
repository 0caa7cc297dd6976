"""Methods with a single cut inside the language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from flowcut.methods import schedule
from flowcut.pruner import Cut, LanguageView, ModelShape, Pruner


class DecoderCut(Pruner):
    """Cut once, before decoder layer `layer`. Derive a frozen dataclass with the fields below, and `select`.

    The fields are not declared here, so that a class sets their order and defaults:

    Attributes:
        layer: the first decoder layer that reads the kept tokens only.
        keep: tokens to keep, in place of those that follow from the budget.
        positions: of kept tokens: as they were, or counted anew.
    """

    layer: int
    keep: int | None
    positions: Literal["original", "renumbered"]

    def __post_init__(self) -> None:
        super().__post_init__()
        schedule.check_single(self.layer, self.keep)
        schedule.check_positions(self.positions)

    def check(self, shape: ModelShape) -> None:
        shape.need_decoder(type(self).__name__, "layer", self.layer, spare=0)

    def kept(self, tokens: int, layers: int) -> int:
        """How many of an image's `tokens` stay in a decoder of that many layers."""
        budget = self.tokens_of(tokens)
        if tokens <= budget:
            return tokens
        if self.keep is not None:
            return min(self.keep, tokens)
        return schedule.single(tokens, layers, self.layer, budget)

    def least_budget(self, tokens: int, shape: ModelShape) -> int:
        if self.keep is not None or shape.decoder_layers is None:
            return super().least_budget(tokens, shape)
        return schedule.least_single(tokens, shape.decoder_layers, self.layer)

    def schedule(self, tokens: int, layers: int) -> schedule.Schedule:
        """What becomes of an image of so many tokens in a decoder of so many layers."""
        return schedule.build(tokens, layers, (self.layer - 1,), [self.kept(tokens, layers)])

    def language(self, view: LanguageView) -> Cut | None:
        if view.layer != self.layer - 1:
            return None
        counts = [self.kept(count, view.layers) for count in view.counts]
        return None if counts == list(view.counts) else self.select(view, counts)

    def select(self, view: LanguageView, counts: Sequence[int]) -> Cut:
        """Choose `counts[r]` tokens of each image. Only called when there is something to drop."""
        raise NotImplementedError
