"""ST3 (Zhuang et al., AAAI 2025, "ST3: Accelerating Multimodal Large Language Model by Spatial-Temporal Visual Token
Trimming", arXiv 2412.20105).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from flowcut.methods import schedule
from flowcut.methods.annealing import Annealing
from flowcut.methods.text_attention import last_row
from flowcut.pruner import Cut, LanguageView, ModelShape


@dataclass(frozen=True)
class ST3(Annealing):
    """Drop visual tokens every few decoder layers, and from the KV cache of each layer while the answer grows.

    Progressive pruning: after decoder layer `start` - 1, and every `stride` layers from there on, the tokens that the
    sample's last token attends to least are dropped. Scores are that layer's own, softmax over the whole row, mean over
    heads. Of an image's N tokens int(N * r), int(N * r^2), ... stay. Annealing: entries of what is left leave the KV
    cache by the same score, now of the newest token; see `Annealing`.

    No code was published. From the paper's description are: the last row of attention as score, a stride and a ratio
    for layers, a number of entries that falls with the number of new tokens. Ours are: the defaults of `start` and
    `stride`, the ratio (it follows from the budget), the curve and the values of annealing, leaving out layer 0 there,
    and that entries leave every `anneal_every` tokens rather than with each. So no result of this class stands for one
    of the paper's. The paper speaks of about 30 % of LLaVA's KV cache; docs/cost.md has what is measured here.

    Positions: kept as they were. In training nothing is annealed. Tiles of an image are ranked together, frames of a
    video each by themselves.

    Attributes:
        budget: visual tokens an average decoder layer reads in the prefill, per image or frame.
        start: the first decoder layer that reads fewer tokens.
        stride: decoder layers from one cut to the next.
        keep: tokens that stay at each cut, in place of those that follow from the budget.
        positions: of kept tokens: as they were, or counted anew.

    Raises:
        ValueError: a field has a value that is not allowed, or the budget is not to be met with these layers.
    """

    name: ClassVar[str] = "st3"
    reference: ClassVar[str] = "ST3, arXiv 2412.20105"

    start: int = 2
    stride: int = 4
    keep: tuple[int, ...] | None = None
    positions: Literal["original", "renumbered"] = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("start", "stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not a number of layers >= 1")
        if self.keep is not None:
            schedule.check_kept("keep", self.keep, len(self.keep))
        schedule.check_positions(self.positions)

    def check(self, shape: ModelShape) -> None:
        shape.need_decoder("ST3", "start", self.start, spare=0)
        if self.keep is not None and shape.decoder_layers is not None:
            schedule.check_kept("keep", self.keep, len(self.after(shape.decoder_layers)))

    def after(self, layers: int) -> tuple[int, ...]:
        """The layers after which a cut is made; the last one of all is none."""
        return tuple(range(self.start - 1, layers - 1, self.stride))

    def within_budget(self, entered: int, unpruned: int) -> bool:
        return entered <= self.tokens_of(entered)

    def schedule(self, tokens: int, layers: int) -> schedule.Schedule:
        """What becomes of an image of so many tokens in a decoder of so many layers."""
        after, budget = self.after(layers), self.tokens_of(tokens)
        if tokens <= budget:
            return schedule.build(tokens, layers, after, [tokens] * len(after))
        if self.keep is not None:
            return schedule.build(tokens, layers, after, self.keep)
        return schedule.shrinking(tokens, layers, after, budget)

    def language(self, view: LanguageView) -> Cut | None:
        after = self.after(view.layers)
        if view.layer not in after:
            return None
        stage = after.index(view.layer)
        counts = [self.schedule(tokens, view.layers).left[stage] for tokens in view.initial]
        if counts == list(view.counts):
            return None
        score = last_row(view)
        view.record("score", score)
        return Cut.best(score, counts, view.valid, renumber=self.positions == "renumbered")
