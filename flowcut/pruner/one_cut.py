"""Methods with a single cut in the encoder: where it is made, and how much is kept, is settled here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flowcut.pruner.base import Pruner
from flowcut.pruner.cut import Cut
from flowcut.pruner.shape import EncoderShape
from flowcut.pruner.view import View


@dataclass(frozen=True)
class OneCut(Pruner):
    """Cut once, after the last but one encoder layer (which LLaVA reads its features from). Derive and `select`.

    A class that compares projected tokens sets `at_feature_layer`: then the cut comes after the layer that features
    are really read from, whichever that is.
    """

    at_feature_layer: ClassVar[bool] = False

    def cut_layer(self, shape: EncoderShape) -> int:
        """The layer after which the cut is made."""
        return shape.feature_layer if self.at_feature_layer else shape.layers - 2

    def reads_layer(self, layer: int, shape: EncoderShape) -> bool:
        return layer == self.cut_layer(shape) or type(self).vision is not OneCut.vision

    def vision(self, view: View) -> Cut | None:
        if view.layer != self.cut_layer(view.shape):
            return None
        counts = self.goals(view)
        return None if counts == list(view.counts) else self.select(view, counts)

    def goals(self, view: View) -> list[int]:
        """How many patches each row keeps: its share of the budget, or all it has."""
        return [min(pair) for pair in zip(view.counts, self.targets(view.rows, view.shape), strict=True)]

    def select(self, view: View, counts: Sequence[int]) -> Cut:
        """Choose `counts[r]` patches of each row. Only called when there is something to drop."""
        raise NotImplementedError


@dataclass(frozen=True)
class Scorer(OneCut):
    """Cut once and keep the patches of highest score. Derive and answer `score`."""

    def select(self, view: View, counts: Sequence[int]) -> Cut:
        score = self.score(view)
        view.record("score", score)
        return view.best(score, counts)

    def score(self, view: View) -> Tensor:
        """[R, n], the importance of each patch; what is scored on padding is not used."""
        raise NotImplementedError
