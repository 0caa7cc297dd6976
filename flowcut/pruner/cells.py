"""Cells of patches on a raster."""

from __future__ import annotations

from torch import Tensor


def cell_numbers(positions: Tensor, columns: Tensor | int, cell: tuple[int, int]) -> Tensor:
    """In which cell of its grid each patch lies.

    Args:
        positions: [.., n], places of patches on a raster, row by row from 0.
        columns: how many cells stand in a row of the grid; [.., 1] where grids differ.
        cell: rows and columns of patches in a cell.

    Returns:
        [.., n], numbers of cells, row by row from 0.
    """
    high, wide = cell
    row, column = positions // (columns * wide), positions % (columns * wide)
    return row // high * columns + column // wide
