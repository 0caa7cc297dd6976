"""FastV (Chen et al., ECCV 2024, "An Image is Worth 1/2 Tokens After Layer 2", arXiv 2403.06764)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from flowcut.methods.decoder_cut import DecoderCut
from flowcut.methods.text_attention import last_row
from flowcut.pruner import Cut, LanguageView


@dataclass(frozen=True)
class FastV(DecoderCut):
    """Keep the visual tokens that the last prompt token attends to most, once, before decoder layer `layer`.

    The score of a visual token is the weight the last token gives it in layer `layer` - 1, softmax over the whole row,
    averaged over heads. Kept tokens retain their positions. Chosen once, in the prefill (the released code's static
    mode with a KV cache; the paper speaks of the average over all tokens, its code takes the last one).

    Attributes:
        budget: visual tokens an average decoder layer reads, per image: (layer * N + (L - layer) * kept) / L.
        layer: the first decoder layer that reads the kept tokens only.
        keep: tokens to keep, in place of those that follow from the budget.
        positions: of kept tokens: as they were, or counted anew.

    Raises:
        ValueError: a field has a value that is not allowed, or the budget is not to be met after `layer` full layers.
    """

    name: ClassVar[str] = "fastv"
    reference: ClassVar[str] = "FastV, arXiv 2403.06764"

    layer: int = 2
    keep: int | None = None
    positions: Literal["original", "renumbered"] = "original"

    @classmethod
    def keeping(cls, tokens: int, **fields: Any) -> FastV:
        """Keep that many tokens, whatever the average over layers comes to."""
        return cls(budget=tokens, keep=tokens, **fields)

    def select(self, view: LanguageView, counts: Sequence[int]) -> Cut:
        score = last_row(view)
        view.record("score", score)
        return Cut.best(score, counts, view.valid, renumber=self.positions == "renumbered")
