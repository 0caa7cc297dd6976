"""FastV (Chen et al., ECCV 2024, "An Image is Worth 1/2 Tokens After Layer 2", arXiv 2403.06764)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from flowcut import schedule
from flowcut.pruner import Cut, LanguageView, Pruner
from flowcut.text_rows import last_row

if TYPE_CHECKING:
    from flowcut.anatomy import Anatomy


@dataclass(frozen=True)
class FastV(Pruner):
    """One cut inside the language model: in front of decoder layer `layer`, by the attention of the last prompt token.

    The score of a visual token is the weight the last token gives it in layer `layer` - 1, softmax over the whole row,
    averaged over heads. What stays keeps its position. Chosen once, in the prefill (the released code's static mode
    with a KV cache; the paper speaks of the average over all tokens, its code takes the last one).

    Attributes:
        budget: visual tokens an average decoder layer reads, per image: (layer * N + (L - layer) * kept) / L.
        layer: the first decoder layer that reads the kept tokens only.
        keep: tokens to keep, in place of those that follow from the budget.
        positions: of what is left: as they were, or counted anew.

    Raises:
        ValueError: a field has a value that is not allowed, or the budget is not to be met after `layer` full layers.
    """

    layer: int = 2
    keep: int | None = None
    positions: Literal["original", "renumbered"] = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        schedule.check_single(self.layer, self.keep)
        schedule.check_positions(self.positions)

    @classmethod
    def keeping(cls, tokens: int, **fields: Any) -> FastV:
        """Keep that many tokens, whatever the average over layers comes to."""
        return cls(budget=tokens, keep=tokens, **fields)

    def check(self, anatomy: Anatomy) -> None:
        schedule.check_decoder("FastV", anatomy, "layer", self.layer, spare=0)

    def kept(self, tokens: int, layers: int) -> int:
        """How many of an image's `tokens` stay in a decoder of that many layers."""
        budget = self.tokens_of(tokens)
        if tokens <= budget:
            return tokens
        if self.keep is not None:
            return min(self.keep, tokens)
        return schedule.single(tokens, layers, self.layer, budget)

    def schedule(self, tokens: int, layers: int) -> schedule.Schedule:
        """What becomes of an image of so many tokens in a decoder of so many layers."""
        return schedule.build(tokens, layers, (self.layer - 1,), [self.kept(tokens, layers)])

    def language(self, view: LanguageView) -> Cut | None:
        if view.layer != self.layer - 1:
            return None
        counts = [self.kept(count, view.layers) for count in view.counts]
        if counts == list(view.counts):
            return None
        score = last_row(view)
        view.record("score", score)
        return Cut.best(score, counts, view.valid, renumber=self.positions == "renumbered" and not view.mrope)
