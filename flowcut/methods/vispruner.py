"""VisPruner (Zhang et al., ICCV 2025, "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token
Pruning in VLMs", arXiv 2412.01818 from its second version on; the first is FasterVLM).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from flowcut.pruner import Cut, OneCut, View


def diverse(features: Tensor, left: int, drop: int) -> Tensor:
    """Numbers of the `left` tokens [n, D] that remain when near-duplicates are dropped, in the order of the last round.

    Each round splits the list into members at even and odd places and drops those `drop` even ones (at the end
    fewer) that resemble an odd one most (cosine). The others follow by falling resemblance, then the odd ones in
    their order.
    """
    unit = normalize(features, dim=-1)
    similarity = unit @ unit.T
    residual = torch.arange(len(features), device=features.device)
    while len(residual) > left:
        even, odd = residual[::2], residual[1::2]
        if not len(odd):
            return residual[:left]
        alike = similarity[even][:, odd].amax(dim=1)
        number = min(drop, len(residual) - left)
        order = alike.argsort(descending=True, stable=True)
        residual = torch.cat([even[order[number:]], odd])
    return residual


def select(score: Tensor, features: Tensor, tokens: int, important: int, drop: int) -> Tensor:
    """The kept tokens of one image, ascending: the `important` ones of highest score [n], the rest by diversity."""
    order = score.argsort(descending=True, stable=True)
    rest = order[important:]
    chosen = rest[:0]
    if tokens > important:
        chosen = rest[diverse(features[rest], tokens - important, drop)]
    return torch.cat([order[:important], chosen]).sort().values


@dataclass(frozen=True)
class VisPruner(OneCut):
    """Keep the patches with the highest CLS attention and, of the others, the least similar ones.

    Done once, after the layer LLaVA reads its features from (the last but one). Important patches are taken by the
    head mean of that layer's CLS attention; the rest, ordered by the same, loses its
    near-duplicates round by round (cosine of the layer's output). Kept patches stay in their order;
    positions in the language model are renumbered, in Qwen2-VL kept.

    Released code (github.com/Theia-4869/VisPruner, aefa01a): the same choice for one image. It stops with an error
    where an odd number of patches is left beside the important ones, or too few for a full round, and flattens a
    batch into one row; here the last rounds drop what remains to drop, and each image decides for itself.

    The rounds are chaotic: on 576 patches a difference of rounding changes a third of the diverse ones (measured by
    the recorded cases' authors, float32 against float64), so results of two implementations are alike in quality,
    not in patches.

    Without a CLS token the mean of all tokens takes its place, which the paper does not cover. Tiles of an anyres
    image choose each for itself, frames of a video too. Where the model merges patches (Qwen2-VL), whole groups are
    chosen, by their mean score and mean feature.

    Attributes:
        budget: visual tokens that reach the language model, per image (an anyres tile gets its share).
        important_ratio: share of the budget that is chosen by attention, rounded down. Published: 0.5 for every
            budget (0.75 for MME at 64).
        drop: near-duplicates dropped in a round.

    Raises:
        ValueError: a field is out of range.
    """

    name: ClassVar[str] = "vispruner"
    reference: ClassVar[str] = "VisPruner, arXiv 2412.01818 (version 2)"
    reads_hidden: ClassVar[bool] = True

    important_ratio: float = 0.5
    drop: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.important_ratio <= 1:
            raise ValueError(f"important_ratio={self.important_ratio} is not a share in 0 ... 1; the paper's is 0.5")
        if self.drop < 1:
            raise ValueError(f"drop={self.drop} is not a number of tokens >= 1; the paper's is 8")

    def select(self, view: View, counts: Sequence[int]) -> Cut:
        attention, size = view.global_attention(), view.shape.patches_per_token
        view.record("score", attention)
        score = view.per_token(attention)
        features = view.per_token(view.visual(view.hidden).float())
        rows = []
        for number, (count, left) in enumerate(zip(view.counts, counts, strict=True)):
            whole, tokens = count // size, left // size
            important = int(tokens * self.important_ratio)
            rows.append(select(score[number, :whole], features[number, :whole], tokens, important, self.drop))
        return view.as_patches(Cut.rows(rows))
