"""FastV (Chen et al., ECCV 2024, "An Image is Worth 1/2 Tokens After Layer 2", arXiv 2403.06764)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flowcut import scores
from flowcut.pruner import Cut, LanguageView, Pruner

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

    Raises:
        ValueError: a field has a value that is not allowed, or the budget is not to be met after `layer` full layers.
    """

    layer: int = 2
    keep: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer < 1:
            raise ValueError(f"layer={self.layer} is not a layer's number >= 1; the paper's is 2")
        if self.keep is not None and self.keep < 1:
            raise ValueError(f"keep={self.keep} is not a number of tokens >= 1")

    @classmethod
    def keeping(cls, tokens: int, **fields: Any) -> FastV:
        """Keep that many tokens, whatever the average over layers comes to."""
        return cls(budget=tokens, keep=tokens, **fields)

    def check(self, anatomy: Anatomy) -> None:
        if anatomy.decoder is None:
            raise ValueError("FastV cuts inside a language model, and this is a vision encoder alone")
        if self.layer >= len(anatomy.decoder.layers):
            raise ValueError(f"layer={self.layer} is not in this decoder of only {len(anatomy.decoder.layers)} layers")

    def kept(self, tokens: int, layers: int) -> int:
        """How many of an image's `tokens` stay in a decoder of that many layers."""
        if tokens <= self.budget:
            return tokens
        if self.keep is not None:
            return min(self.keep, tokens)
        kept = round((layers * self.budget - self.layer * tokens) / (layers - self.layer))
        if kept < 1:
            least = -(-(self.layer * tokens + layers - self.layer) // layers)
            raise ValueError(
                f"budget={self.budget} is not to be met on average over {layers} layers when the first {self.layer} "
                f"read all {tokens} tokens; use at least {least}, or keep="
            )
        return kept

    def language(self, view: LanguageView) -> Cut | None:
        if view.layer != self.layer - 1:
            return None
        counts = [self.kept(count, view.layers) for count in view.counts]
        if counts == list(view.counts):
            return None
        real = None if view.real is None else view.real[list(view.samples)]
        row = scores.softmax_row(view.last_token(view.q), view.whole(view.k), view.scaling, real).mean(dim=1)
        score = row.gather(1, view.columns + view.past)
        view.record("score", score)
        return Cut.best(score, counts, view.valid)
