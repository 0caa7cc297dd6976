"""Average pooling: the control that shrinks the picture instead of choosing from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowcut.methods.uniform import cells, middles
from flowcut.pruner import Cut, ModelShape, OneCut, View


@dataclass(frozen=True)
class Pooling(OneCut):
    """Replace the patches of every cell of a grid by their mean; the grid has `budget` cells of near-equal area.

    No paper: a control. Done once, on the output of the layer LLaVA reads its features from (the last but one), with
    the cells of `Uniform`; in the trace a cell is named by its middle patch. Every token is a merged one. Each anyres
    tile and each video frame is pooled by itself, to its share of the budget. Encoders without a CLS token make no
    difference. Consecutive positions in the language model. Nothing depends on the batch.

    Attributes:
        budget: visual tokens that reach the language model, per image or video frame.

    Raises:
        ValueError: when attached to a model that merges 2 x 2 patches itself (Qwen2-VL).
    """

    name: ClassVar[str] = "pooling"
    reference: ClassVar[str] = "control: means over an even grid"
    reads_hidden: ClassVar[bool] = True

    def check(self, shape: ModelShape) -> None:
        shape.refuse_merging("Pooling")

    def select(self, view: View, counts: Sequence[int]) -> Cut:
        states, keep, hidden, sources = view.visual(view.hidden), [], [], []
        for number, (count, grid) in enumerate(zip(counts, view.rows.grids, strict=True)):
            found = cells(*grid, count)
            patches = states[number, : view.counts[number]].float().unflatten(0, grid)
            means = [patches[top:bottom, left:right].mean(dim=(0, 1)) for top, bottom, left, right in found.tolist()]
            keep.append(middles(found, grid[1]).to(states.device))
            hidden.append(torch.stack(means))
            if view.recording:
                sources.append(cell_of_each(found, grid).to(states.device))
        return Cut.rows(keep, hidden, sources=sources or None)


def cell_of_each(found: Tensor, grid: tuple[int, int]) -> Tensor:
    """[rows * columns]: the number of the cell that each patch of a grid lies in."""
    number = torch.empty(grid, dtype=torch.long)
    for cell, (top, bottom, left, right) in enumerate(found.tolist()):
        number[top:bottom, left:right] = cell
    return number.flatten()
