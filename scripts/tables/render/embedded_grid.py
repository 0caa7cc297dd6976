"""A table of the paper on the embedded model, from existing cells, times and training records."""

from __future__ import annotations

import json
from pathlib import Path

from scripts.tables.cells.embedded import read_cells
from scripts.tables.cells.times import EFFICIENCY, how_taken, times_of
from scripts.tables.paper.embedded_rows import pruners
from scripts.tables.paper.spec import Table
from scripts.tables.render import embedded_shape
from scripts.tables.render.grid import Grid


def embedded_grid(table: Table, results: Path) -> Grid:
    """The table on the embedded model. Nothing is run.

    Raises:
        ValueError: cells, times or the record of training are missing.
    """
    if table.number == 6:
        record = results / "embedded" / "training.json"
        if not record.is_file():
            raise ValueError(f"{record} does not exist; scripts/embedded/train_pruned.sh trains and makes it")
        return embedded_shape.training(table, read_cells(table, results), json.loads(record.read_text("utf-8")))
    cells = read_cells(table, results)
    if table.number != 5:
        return embedded_shape.accuracy(table, cells)
    file = results / "embedded" / EFFICIENCY
    times = times_of(file)
    if missing := [text for text in pruners(table) if text not in times]:
        raise ValueError(f"{file} lacks {', '.join(missing)}; run this without --render")
    return embedded_shape.efficiency(table, cells, times, how_taken(file))
