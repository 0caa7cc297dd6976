"""FasterVLM (Zhang et al. 2024, "[CLS] Attention is All You Need for Training-Free Visual Token Pruning")."""

from __future__ import annotations

from dataclasses import dataclass

from flowcut import scores
from flowcut.pruner import Cut, Pruner, View


@dataclass(frozen=True)
class FasterVLM(Pruner):
    """Keep the patches the CLS token attends to most, once, in the layer LLaVA reads its features from.

    The score is the CLS row of the last but one layer's attention, averaged over heads. Without a CLS token the mean
    of all tokens takes its place, which the paper does not cover.

    Attributes:
        budget: visual tokens that reach the language model, per image.
    """

    def vision(self, view: View) -> Cut | None:
        counts = view.once(self.budget)
        if counts is None:
            return None
        row = scores.softmax_row(view.global_token(view.q), view.k, view.scaling, view.key_valid).mean(dim=1)
        score = row[:, view.prefix :]
        view.record("score", score)
        return view.best(score, counts)
