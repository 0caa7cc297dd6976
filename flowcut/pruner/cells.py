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


def tokens_of(grid: tuple[int, int], cell: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of cells in a grid of patches.

    Raises:
        ValueError: the grid is not square, or no whole number of cells.
    """
    if grid[0] != grid[1] or grid[0] % cell[0] or grid[1] % cell[1]:
        raise ValueError(
            f"a picture of {grid[0]} x {grid[1]} patches is not a square of whole cells of {cell[0]} x {cell[1]}; "
            "this model makes one token of each cell, so resize the picture as the model's image processor does"
        )
    return grid[0] // cell[0], grid[1] // cell[1]
