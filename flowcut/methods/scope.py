"""SCOPE (Deng et al., NeurIPS 2025, "SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodal LLMs",
arXiv 2510.24214).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from flowcut.pruner import Cut, OneCut, View


@dataclass(frozen=True)
class SCOPE(OneCut):
    """Pick tokens greedily by the coverage they add times their CLS attention.

    A set covers a token as well as its most similar member does (cosine of features), and nothing is covered worse than
    0. A token's gain is what all tokens would be covered better if it joined; its score is the gain times its saliency
    to the power `alpha`. The highest score joins, until there are `budget`. Saliency is the CLS row of the attention,
    averaged over heads. One cut, after the last but one layer, on features that are not projected.

    Positions: consecutive in the language model, as published; with M-RoPE tokens keep their own.
    Families: without a CLS token the mean of all tokens looks in its place, which the paper does not cover. Every
    anyres tile and every video frame chooses its share by itself. In Qwen2-VL the means over merge groups are compared.
    Nothing depends on the batch. Written from the paper's description; the released code has no licence and was not
    looked at, so its value of `alpha` is not confirmed (accounts of the paper give 1 as the default).

    Attributes:
        budget: visual tokens that reach the language model, per image or video frame. Any number.
        alpha: power of the saliency, >= 0; 0 leaves coverage alone.

    Raises:
        ValueError: `alpha` is negative.
    """

    name: ClassVar[str] = "scope"
    reference: ClassVar[str] = "SCOPE, arXiv 2510.24214"
    reads_hidden: ClassVar[bool] = True

    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alpha >= 0:
            raise ValueError(f"alpha={self.alpha} is not a power >= 0; use 1, or 0 for coverage alone")

    def select(self, view: View, counts: Sequence[int]) -> Cut:
        saliency = view.global_attention()
        view.record("saliency", saliency)
        unit = normalize(view.per_token(view.visual(view.hidden).float()), dim=-1)
        tokens = [count // view.shape.patches_per_token for count in counts]
        weight = view.per_token(saliency) ** self.alpha
        picks = most_covering(unit @ unit.mT, weight, max(tokens), view.token_valid)
        return view.as_patches(Cut.first(picks, tokens))


def most_covering(
    similarity: Tensor, weight: Tensor, number: int, valid: Tensor | None = None, mass: Tensor | None = None
) -> Tensor:
    """[R, number] tokens in the order in which they are chosen, the lower of equals first.

    Args:
        similarity: [R, n, n], symmetric.
        weight: [R, n], by which a token's gain is multiplied.
        number: how many.
        valid: [R, n], False for padding, which neither covers nor needs to be covered.
        mass: [R, n], how much it counts that a token is covered; 1 for each if left out.
    """
    every = torch.arange(len(similarity), device=similarity.device)
    if valid is not None:
        similarity = similarity.masked_fill(~valid[:, None] | ~valid[:, :, None], 0)
    covered = torch.zeros_like(weight)
    free = torch.ones_like(weight, dtype=torch.bool) if valid is None else valid.clone()
    picks = []
    for _ in range(number):
        gained = (similarity - covered[:, None]).clamp_min(0)
        gain = gained.sum(dim=2) if mass is None else (gained @ mass[:, :, None]).squeeze(2)
        pick = (gain * weight).masked_fill(~free, -torch.inf).argmax(dim=1)
        free[every, pick] = False
        covered = torch.maximum(covered, similarity[every, pick])
        picks.append(pick)
    return torch.stack(picks, dim=1)
