"""VTW (Lin et al., AAAI 2025, "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid
Inference", arXiv 2405.05803).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from flowcut.methods import schedule
from flowcut.pruner import Cut, LanguageView, ModelShape, Pruner


@dataclass(frozen=True)
class VTW(Pruner):
    """Drop all visual tokens before one decoder layer; the layers before it read all of them.

    Done once, in the prefill: the layers in front keep the visual tokens in their KV cache. The paper takes layer 15
    of the 32 of LLaVA-1.5-7B (`vtw:budget=270,layer=15`), found by `python -m flowcut.vtw_search`; FlowCut's table 9
    takes layer 5. For a budget the layer follows from the mean, so the budget is met within half an image's share of
    a layer (for 576 tokens and 32 layers: 9 tokens).

    Positions: the text keeps its own, as released (`pe_type="keep"`). Law 2 ("exactly `budget` tokens in the last
    layers") cannot hold: none are left there, and the budget is the mean over layers. Images with at most `budget`
    tokens stay. All images of a sample (tiles, frames) go at the same layer, unless the budget lets one of them
    stay. A sample that is nothing but image would have nothing left, and is refused.

    Attributes:
        budget: visual tokens an average decoder layer reads, per image or frame.
        layer: the first decoder layer without visual tokens, in place of the one that follows from the budget.
        positions: of kept tokens: as they were, or counted anew.

    Raises:
        ValueError: a field has a value that is not allowed, or a sample has no text.
    """

    name: ClassVar[str] = "vtw"
    reference: ClassVar[str] = "VTW, arXiv 2405.05803"

    layer: int | None = None
    positions: Literal["original", "renumbered"] = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer is not None and self.layer < 1:
            raise ValueError(f"layer={self.layer} is not a layer's number >= 1; the paper's is 15 of 32")
        schedule.check_positions(self.positions)

    def check(self, shape: ModelShape) -> None:
        shape.need_decoder("VTW", "layer", self.layer or 1, spare=0)

    def least_budget(self, tokens: int, shape: ModelShape) -> int:
        if self.layer is not None or shape.decoder_layers is None:
            return super().least_budget(tokens, shape)
        return -(-tokens // shape.decoder_layers)  # the first layer reads them all

    def schedule(self, tokens: int, layers: int) -> schedule.Schedule:
        """What becomes of an image of so many tokens in a decoder of so many layers."""
        budget = self.tokens_of(tokens)
        layer = self.layer or max(round(budget * layers / tokens), 1)
        left = (tokens if tokens <= budget or layer >= layers else 0,)
        return schedule.Schedule(tokens, layers, (layer - 1,), left, left)

    def language(self, view: LanguageView) -> Cut | None:
        plans = [self.schedule(tokens, view.layers) for tokens in view.initial]
        counts = [
            left[view.layer] if view.layer in plan.after else count
            for plan, left, count in zip(plans, [plan.leaving for plan in plans], view.counts, strict=True)
        ]
        if counts == list(view.counts):
            return None
        _refuse_without_text(view, counts)
        return Cut.best(view.positions.float(), counts, view.valid, renumber=self.positions == "renumbered")


def _refuse_without_text(view: LanguageView, counts: list[int]) -> None:
    for sample in set(view.layout.samples):
        length = view.q.shape[2] if view.layout.real is None else int(view.layout.real[sample, view.past :].sum())
        own = [row for row, owner in enumerate(view.layout.samples) if owner == sample]
        if length == sum(view.counts[row] for row in own) and not any(counts[row] for row in own):
            raise ValueError("VTW drops all visual tokens, and this prompt has no others; add text to it")
