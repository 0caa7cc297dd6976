"""Uniform sampling: the control that spreads the kept patches evenly over the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from flowcut.pruner import Cut, OneCut, View


@dataclass(frozen=True)
class Uniform(OneCut):
    """Keep the middle patch of every cell of a grid that cuts the picture into `budget` cells of near-equal area.

    No paper: a control without any score. One cut, after the layer LLaVA reads its features from (the last but one).
    Encoders without a CLS token make no difference. Each anyres tile and each video frame has a grid of its own, of as
    many cells as its share of the budget; in Qwen2-VL cells consist of merged tokens. Kept tokens have consecutive
    positions in the language model, with M-RoPE their own. Nothing depends on the batch.

    Attributes:
        budget: visual tokens that reach the language model, per image or video frame.
    """

    name: ClassVar[str] = "uniform"
    reference: ClassVar[str] = "control: the middles of an even grid"

    def select(self, view: View, counts: Sequence[int]) -> Cut:
        rows, size = [], view.shape.patches_per_token
        for number, (count, grid) in enumerate(zip(counts, view.rows.grids, strict=True)):
            # In windowed encoders the tokens are not in the order of the grid.
            order = view.token_numbers[number, : view.counts[number] // size].argsort()
            rows.append(order[middles(cells(*grid, count // size), grid[1]).to(order.device)].sort().values)
        return view.as_patches(Cut.rows(rows))


@lru_cache(maxsize=64)
def cells(rows: int, columns: int, number: int) -> Tensor:
    """[number, 4]: top, bottom, left and right (both ends exclusive) of cells that cut a grid into near-equal areas.

    The cells lie in bands of rows, in reading order. Taken is the number of bands whose cells are closest to squares,
    among those whose largest cell is at most half as large again as their smallest; where there is none, the one with
    the smallest such ratio. With number = rows * columns each token is a cell.
    """
    found = [_bands(rows, columns, number, bands) for bands in range(1, min(rows, number) + 1)]
    return min((split for split in found if split is not None), key=_unevenness)


def middles(found: Tensor, columns: int) -> Tensor:
    """[number]: the token in the middle of each cell; of two the one further up or left. They ascend."""
    top, bottom, left, right = found.unbind(dim=1)
    return (top + bottom - 1) // 2 * columns + (left + right - 1) // 2


def _bands(rows: int, columns: int, number: int, bands: int) -> Tensor | None:
    """The cells in that many bands, each as high as it has cells; None where the columns are too few for them."""
    share = [number * (band + 1) // bands - number * band // bands for band in range(bands)]
    if max(share) > columns:
        return None
    found, top = [], 0
    for height, own in zip(_apportion(rows, share), share, strict=True):
        edges = [columns * cell // own for cell in range(own + 1)]
        found += [(top, top + height, left, right) for left, right in pairwise(edges)]
        top += height
    return torch.tensor(found)


def _apportion(total: int, weights: list[int]) -> list[int]:
    """Whole numbers >= 1 that add up to `total`, as near to the proportion of the weights as can be."""
    shares = [1] * len(weights)
    for _ in range(total - len(weights)):
        shares[max(range(len(weights)), key=lambda one: weights[one] / (shares[one] + 0.5))] += 1
    return shares


def _unevenness(found: Tensor) -> tuple[float, float]:
    top, bottom, left, right = found.double().unbind(dim=1)
    height, width = bottom - top, right - left
    area = height * width
    return max(float(area.max() / area.min()), 1.5), float((height / width).log().abs().mean())
