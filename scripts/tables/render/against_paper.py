"""A table of the paper with measured numbers: lines for paper, ours, difference and n under every row."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scripts.tables.cells.measured import MeasuredTable
from scripts.tables.paper.spec import Column, Table
from scripts.tables.render.grid import NOTHING, Grid


class Average(NamedTuple):
    """Mean of ratios to an unpruned row, in percent. used, of: benchmarks with both numbers, and all of them."""

    value: float
    used: tuple[str, ...]
    of: int


def average(
    columns: Sequence[Column], values: Sequence[float | None], upper: Sequence[float | None], name: str
) -> Average | None:
    """The mean over the columns of the average `name` that have both numbers; None without numbers."""
    own = [
        (column.name, value, bound)
        for column, value, bound in zip(columns, values, upper, strict=True)
        if column.average == name
    ]
    ratios = {label: 100 * value / bound for label, value, bound in own if value is not None and bound}
    return Average(statistics.fmean(ratios.values()), tuple(ratios), len(own)) if ratios else None


def grid(table: Table, measured: MeasuredTable, model: str) -> Grid:
    """Four lines per row; rows without public code have the paper's line only.

    An average has two columns: relative to our own unpruned model, and relative to the paper's unpruned numbers. In the
    paper's line, the second column is the average recomputed from the printed row.
    """
    header = ["tokens", "method", "", *(column.name for column in table.columns)]
    for name in table.averages:
        header += [name, f"{name}, paper's bound"]
    made = Grid(f"{model}, measured, and the paper's table {table.number} ({table.title})", header, left=3)
    made.better = {at: 1 for at in range(3, len(header))}
    for at, column in enumerate(table.columns, 3):
        if column.source != "cell":  # times and FLOPs, of which less is better, stand beside ratios
            del made.better[at]
    for number, row in enumerate(table.rows):
        lines = _lines(made, table, number, measured)
        places = range(len(made.lines), len(made.lines) + len(lines))
        made.unranked |= {
            at for at, line in zip(places, lines, strict=True) if line[2] != "ours" or row.pruner == "none"
        }
        made.groups += [row.section] * len(lines)
        made.lines += lines
    made.notes += table.notes
    return made


def _lines(made: Grid, table: Table, number: int, measured: MeasuredTable) -> list[list[str]]:
    row, columns = table.rows[number], table.columns
    upper = table.upper(number)
    found = [measured.get((number, column.name)) for column in columns]
    ours = [one and one.value for one in found]
    unpruned = [one and one.value for one in (measured.get((upper, column.name)) for column in columns)]

    paper_line, our_line, difference, count = [], [], [], []
    for column, printed, one in zip(columns, row.printed, found, strict=True):
        misprint = table.misprints.get((row.section, row.method, column.name))
        paper_line.append(made.mark(_number(printed, column.digits), misprint and f"misprint: {misprint}"))
        our_line.append(made.mark(_number(one and one.value, column.digits), "; ".join(one.labels) if one else None))
        difference.append(_difference(one and one.value, printed, column.digits))
        count.append(NOTHING if one is None or one.n is None else str(one.n))
    for name in table.averages:
        shown = row.average.get(name)
        misprint = table.misprints.get((row.section, row.method, name))
        recomputed = average(columns, row.printed, table.rows[upper].printed, name)
        paper_line += [
            made.mark(_number(shown), misprint and f"misprint: {misprint}"),
            _average(made, recomputed, True),
        ]
        against_ours = average(columns, ours, unpruned, name)
        against_paper = average(columns, ours, table.rows[upper].printed, name)
        for mean in (against_ours, against_paper):
            our_line.append(_average(made, mean))
            difference.append(_difference(mean and mean.value, shown))
            count.append(NOTHING if mean is None else f"{len(mean.used)} of {mean.of}")
    head = [row.section, row.method]
    if row.pruner is None:
        return [[*head, made.mark("paper", "reported, not run: no public code"), *paper_line]]
    return [
        [*head, "paper", *paper_line],
        [*head, "ours", *our_line],
        [*head, "difference", *difference],
        [*head, "n", *count],
    ]


def _number(value: float | None, digits: int = 1) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _difference(ours: float | None, printed: float | None, digits: int = 1) -> str:
    return NOTHING if ours is None or printed is None else f"{ours - printed:+.{digits}f}"


def _average(made: Grid, mean: Average | None, printed: bool = False) -> str:
    if mean is None:
        return NOTHING
    few = None if printed or len(mean.used) == mean.of else f"over {', '.join(mean.used)} only"
    return made.mark(f"{mean.value:.1f}", few)
