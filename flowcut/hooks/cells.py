"""What is kept of rasters whose patches become tokens cell by cell: by pixel shuffle, or by averaging.

The tower keeps patches in raster order, and of each cell all or none. Behind it the kept cells are put one after the
other, each with its patches in raster order: a picture of one cell, from which the family's own code makes one token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from flowcut.hooks.placeholders import PlaceholderSpan
from flowcut.pruner import EncoderShape
from flowcut.pruner.cells import cell_numbers
from flowcut.trace import Trace


@dataclass(frozen=True)
class KeptCells:
    """The cells that are left of each encoder row, by their number on the row's grid of cells.

    Attributes:
        order: for each row [C, P], which of its kept patches make up each cell.
        numbers: for each row [C], which cell each one is; they ascend.
        patches: for each row [C], the place of each cell's first patch on the row's grid of patches.
        whole: for each row, how many cells it had.
    """

    order: list[Tensor]
    numbers: list[Tensor]
    patches: list[Tensor]
    whole: list[int]

    @classmethod
    def of(cls, trace: Trace, shape: EncoderShape) -> KeptCells:
        """From what an encoder did with square pictures."""
        assert shape.cell is not None
        size, found = shape.patches_per_token, cls([], [], [], [])
        for kept, patches in zip(trace.final, trace.entering[0], strict=True):
            numbers = cell_numbers(kept, math.isqrt(patches) // shape.cell[1], shape.cell)
            order = numbers.argsort(stable=True).view(-1, size)
            first = order[:, 0]
            found.order.append(order)
            found.numbers.append(numbers[first])
            found.patches.append(kept[first])
            found.whole.append(patches // size)
        return found

    def gather(self, hidden: Tensor, prefix: int = 0) -> Tensor:
        """[R, prefix + n, D], an encoder's output -> [cells, P, D], of all rows one after the other."""
        rows = [states[order.to(hidden.device) + prefix] for states, order in zip(hidden, self.order, strict=True)]
        return torch.cat(rows)

    def spans(self, features: Tensor, groups: Sequence[int]) -> list[PlaceholderSpan]:
        """One span per image, whatever its number of tiles.

        Args:
            features: [cells, D'], of all rows one after the other.
            groups: the number of the image that each row is a tile of; rows of an image are neighbours.
        """
        parts = features.split([len(numbers) for numbers in self.numbers])
        spans = []
        for _, tiles in groupby(range(len(groups)), key=lambda row: groups[row]):
            stays, tokens, shown = [], [], []
            for row in tiles:
                numbers = self.numbers[row].to(features.device)
                stays.append(torch.zeros(self.whole[row], dtype=torch.bool, device=features.device))
                stays[-1][numbers] = True
                tokens.append(torch.stack([torch.full_like(numbers, row), self.patches[row].to(numbers)], dim=1))
                shown.append(parts[row])
            spans.append(PlaceholderSpan(torch.cat(shown), torch.cat(stays), torch.cat(tokens)))
        return spans


def runs(at: Tensor) -> list[tuple[int, int, int]]:
    """Runs of neighbouring placeholders in a prompt, at [B, S] bool: batch row, first column and length of each."""
    found = []
    for row, line in enumerate(at.tolist()):
        column = 0
        for inside, run in groupby(line):
            length = len(list(run))
            if inside:
                found.append((row, column, length))
            column += length
    return found
