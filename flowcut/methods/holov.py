"""HoloV (NeurIPS 2025, "Don't Just Chase Highlighted Tokens in MLLMs: Revisiting Visual Holistic Context Retention",
arXiv 2510.02912).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flowcut.pruner import Cut, OneCut, View

_ATTENTION_SCALE, _TINY = 1e3, 1e-6


def run_score(attention: Tensor, features: Tensor, alpha: float) -> Tensor:
    """The mean over a run of tokens [m] of attention and of how unevenly each resembles the others of the run.

    The second term is the variance of a token's cosines to the others (with the 0 that stands for itself, as
    released), brought to the attention's mean; so the mean over the run is (1 + alpha) times the attention's,
    nearly whatever the features are.
    """
    if len(attention) == 1:
        return attention.mean()
    unit = features / (features.norm(dim=1, keepdim=True) + _TINY)
    alike = (unit @ unit.T).fill_diagonal_(0)
    others = len(attention) - 1
    spread = ((alike - alike.sum(dim=1, keepdim=True) / others) ** 2).sum(dim=1) / others
    attention = attention * _ATTENTION_SCALE
    return (attention + alpha * spread * (attention.abs().mean() / (spread.abs().mean() + _TINY))).mean()


def allot(weights: list[float], sizes: list[int], tokens: int) -> list[int]:
    """How many tokens each run keeps: its share, rounded down, and one more each for those of the highest weight.

    A run cannot keep more than it has; what it leaves over is shared out again among the others by the same rule.
    """
    kept = [0] * len(sizes)
    while sum(kept) < tokens:
        open_runs = [run for run, size in enumerate(sizes) if kept[run] < size]
        total, missing = sum(weights[run] for run in open_runs) + _TINY, tokens - sum(kept)
        shares = {run: int(weights[run] / total * missing) for run in open_runs}
        heaviest = sorted(open_runs, key=lambda run: -weights[run])
        for run in heaviest[: missing - sum(shares.values())]:
            shares[run] += 1
        kept = [min(have + shares.get(run, 0), sizes[run]) for run, have in enumerate(kept)]
    return kept


@dataclass(frozen=True)
class HoloV(OneCut):
    """Divide the budget among runs of neighbouring patches, and keep those with the highest CLS attention in each.

    Done once, after the layer LLaVA reads its features from (the last but one). The patches, row by row, are cut
    into `runs` runs of equal length (36 of 576 patches for 16 runs; no square crops, as the paper draws them). A
    run's share of the budget is proportional to its mean score, attention plus `alpha` times the variance of
    similarities; inside a run patches are taken by attention alone.

    Released code (github.com/obananas/HoloV, Apache-2.0; LLaVA's path keeps 64 of 16 runs, both written into the
    code): takes similarities between projected features, here of the encoder's output; because the variance is
    scaled to the attention's mean, neither they nor `alpha` change a share by more than rounding (users noticed:
    obananas/HoloV#15). Where a run's share exceeds its length the code sends zero vectors for what is missing; here
    the other runs get it. Joins all tiles of an anyres image into one sequence first; here each tile is treated by
    itself, as is each frame of a video. In Qwen2-VL, for which it has another file, runs are of whole merge groups.

    Positions in the language model are renumbered (in Qwen2-VL kept). Inside a run the code sends patches in the
    order of their attention, so kept positions do not ascend unless `order="position"`. On tiles, and in Qwen2-VL,
    order is always by position.

    Without a CLS token the mean of all tokens takes its place, which the paper does not cover.

    Attributes:
        budget: visual tokens that reach the language model, per image (an anyres tile gets its share).
        runs: how many runs a picture is cut into, at most as many as it has tokens; the first ones take what does
            not divide.
        alpha: weight of the variance.
        order: of the tokens within a run: by falling "score" (attention), or by "position".

    Raises:
        ValueError: a field is out of range.
    """

    name: ClassVar[str] = "holov"
    reference: ClassVar[str] = "HoloV, arXiv 2510.02912"
    reads_hidden: ClassVar[bool] = True

    runs: int = 16
    alpha: float = 0.09
    order: Literal["score", "position"] = "score"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.runs < 1:
            raise ValueError(f"runs={self.runs} is not a number of runs >= 1; the released code's is 16")
        if self.alpha < 0:
            raise ValueError(f"alpha={self.alpha} is not a weight >= 0; the released code's is 0.09")
        if self.order not in ("score", "position"):
            raise ValueError(f"order={self.order!r} is not allowed; choose score or position")

    def select(self, view: View, counts: Sequence[int]) -> Cut:
        attention, size = view.global_attention(), view.shape.patches_per_token
        view.record("score", attention)
        score, features = view.per_token(attention), view.per_token(view.visual(view.hidden).float())
        places, rows = view.token_numbers, []
        for number, (count, left) in enumerate(zip(view.counts, counts, strict=True)):
            whole = count // size
            raster = places[number, :whole].argsort()
            kept = self.choose(score[number, :whole][raster], features[number, :whole][raster], left // size, view)
            kept = raster[kept]
            rows.append(kept if self.order == "score" and size == 1 else kept.sort().values)
        return view.as_patches(Cut.rows(rows))

    def choose(self, attention: Tensor, features: Tensor, tokens: int, view: View) -> Tensor:
        """Kept tokens of one image, run by run and in each by falling attention [n]; features [n, D]."""
        sizes = [len(part) for part in attention.tensor_split(min(self.runs, len(attention)))]
        parts = list(zip(attention.split(sizes), features.split(sizes), strict=True))
        weights = view.numbers(torch.stack([run_score(*part, self.alpha) for part in parts]))
        kept, start = [], 0
        for (weighed, _), size, number in zip(parts, sizes, allot(weights, sizes, tokens), strict=True):
            kept.append(weighed.argsort(descending=True, stable=True)[:number] + start)
            start += size
        return torch.cat(kept)
