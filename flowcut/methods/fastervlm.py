"""FasterVLM (Zhang et al. 2024, "[CLS] Attention is All You Need for Training-Free Visual Token Pruning")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flowcut.pruner import Scorer, View


@dataclass(frozen=True)
class FasterVLM(Scorer):
    """Keep the patches with the highest CLS attention, once, after the layer that LLaVA reads its features from.

    The score is the CLS row of the last but one layer's attention, averaged over heads. Without a CLS token the mean
    of all tokens takes its place, which the paper does not cover.

    Attributes:
        budget: visual tokens that reach the language model, per image.
    """

    name: ClassVar[str] = "fastervlm"
    reference: ClassVar[str] = "FasterVLM, arXiv 2412.01818"

    def score(self, view: View) -> Tensor:
        return view.global_attention()
