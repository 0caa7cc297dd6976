"""PyramidDrop (Xing et al., CVPR 2025, "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual
Redundancy Reduction", arXiv 2410.17247).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from flowcut.methods import schedule
from flowcut.methods.text_attention import last_row
from flowcut.pruner import Cut, LanguageView, ModelShape, Pruner


@dataclass(frozen=True)
class PyramidDrop(Pruner):
    """Keep the visual tokens that the last prompt token attends to, in several cuts before the decoder layers `layers`.

    Before layer L the layer's own norm, q and k are applied to the remaining tokens (section 3.2); the
    score of a visual token is the weight that the sample's last token gives it, softmax over the whole row, mean
    over heads. Of an image's N tokens the int(N * ratio), int(N * ratio^2), ... best stay, in their order.

    The paper's own setting is layers 8/16/24 with ratio 0.5, which makes 270 tokens of 576 on average
    (`pdrop:budget=270,layers=8/16/24,ratio=0.5`). For a budget the authors keep the form and choose layers and
    ratio: with 2/8/16 the ratio comes out as 0.560, 0.421 and 0.193 for 192, 128 and 64 of 576 tokens in 32 layers.

    Positions: counted anew after each cut, as released; with M-RoPE tokens keep theirs, which the paper does not
    cover. In training the released code ranks by the mean over all tokens before an answer; here the sample's
    last token ranks there too. The released decoding works for one sample at a time, without padding; here any batch
    does. Tiles of an image (anyres) are ranked together, frames of a video each by themselves.

    Attributes:
        budget: visual tokens an average decoder layer reads, per image or frame.
        layers: the layers before which tokens are dropped.
        ratio: share of tokens that stays at each cut, in place of the one that follows from the budget.
        keep: tokens that stay at each cut, in place of those that follow from the ratio.
        positions: of kept tokens: counted anew after each cut, or as they were.

    Raises:
        ValueError: a field has a value that is not allowed, or the budget is not to be met with these layers.
    """

    name: ClassVar[str] = "pdrop"
    reference: ClassVar[str] = "PyramidDrop, arXiv 2410.17247"
    reads_hidden: ClassVar[bool] = True

    layers: tuple[int, ...] = (2, 8, 16)
    ratio: float | None = None
    keep: tuple[int, ...] | None = None
    positions: Literal["renumbered", "original"] = "renumbered"

    def __post_init__(self) -> None:
        super().__post_init__()
        schedule.check_stages("layers", self.layers, lowest=1)
        schedule.check_kept("keep", self.keep, len(self.layers))
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise ValueError(f"ratio={self.ratio} is not a share between 0 and 1; the paper's is 0.5")
        schedule.check_positions(self.positions)

    def check(self, shape: ModelShape) -> None:
        shape.need_decoder("PyramidDrop", "layers", self.layers[-1], spare=0)

    def least_budget(self, tokens: int, shape: ModelShape) -> int:
        if self.keep is not None or self.ratio is not None or shape.decoder_layers is None:
            return super().least_budget(tokens, shape)
        return schedule.least_shrinking(tokens, shape.decoder_layers, tuple(layer - 1 for layer in self.layers))

    def schedule(self, tokens: int, layers: int) -> schedule.Schedule:
        """What becomes of an image of so many tokens in a decoder of so many layers."""
        after = tuple(layer - 1 for layer in self.layers)
        budget = self.tokens_of(tokens)
        if tokens <= budget:
            return schedule.build(tokens, layers, after, [tokens] * len(after))
        if self.keep is not None:
            return schedule.build(tokens, layers, after, self.keep)
        if self.ratio is not None:
            kept = [max(int(tokens * self.ratio**step), 1) for step in range(1, len(after) + 1)]
            return schedule.build(tokens, layers, after, kept)
        return schedule.shrinking(tokens, layers, after, budget)

    def language(self, view: LanguageView) -> Cut | None:
        if view.layer + 1 not in self.layers:
            return None
        stage = self.layers.index(view.layer + 1)
        counts = [self.schedule(tokens, view.layers).left[stage] for tokens in view.initial]
        if counts == list(view.counts):
            return None
        score = last_row(view.next_layer())
        view.record("score", score)
        return Cut.best(score, counts, view.valid, renumber=self.positions == "renumbered")
