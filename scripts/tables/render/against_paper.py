"""A table of the paper beside what was measured: paper | ours | difference | n for every row."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scripts.tables.paper.spec import Column, Table
from scripts.tables.render.grid import NOTHING, Grid


class Reading(NamedTuple):
    """A measured number. n: over how many questions; labels: what has to be said beside it."""

    value: float
    n: int | None = None
    labels: tuple[str, ...] = ()


Readings = Mapping[tuple[int, str], Reading]
"""(number of the row from 0, name of the column) -> what was measured."""


class Average(NamedTuple):
    """Mean of ratios to an unpruned row, in percent. used, of: benchmarks with both numbers, and all of them."""

    value: float
    used: tuple[str, ...]
    of: int


def average(
    columns: Sequence[Column], values: Sequence[float | None], upper: Sequence[float | None], name: str
) -> Average | None:
    """The mean over the columns of the average `name` that have both numbers; None over nothing."""
    own = [
        (column.name, value, bound)
        for column, value, bound in zip(columns, values, upper, strict=True)
        if column.average == name
    ]
    ratios = {label: 100 * value / bound for label, value, bound in own if value is not None and bound}
    return Average(statistics.fmean(ratios.values()), tuple(ratios), len(own)) if ratios else None


def grid(table: Table, readings: Readings, model: str) -> Grid:
    """Four lines a row; rows without public code have the paper's alone.

    An average stands twice: against the row's own unpruned model, and against the paper's unpruned numbers. The paper's
    line repeats its average in the second place as it follows from the printed row.
    """
    header = ["tokens", "method", "", *(column.name for column in table.columns)]
    for name in table.averages:
        header += [name, f"{name}, paper's bound"]
    made = Grid(f"Table {table.number}: {table.title} ({model})", header, left=3)
    for number in range(len(table.rows)):
        made.lines += _lines(made, table, number, readings)
    made.notes += table.notes
    return made


def _lines(made: Grid, table: Table, number: int, readings: Readings) -> list[list[str]]:
    one, columns = table.rows[number], table.columns
    upper = table.upper(number)
    found = [readings.get((number, column.name)) for column in columns]
    ours = [None if reading is None else reading.value for reading in found]
    bound = [readings.get((upper, column.name)) for column in columns]
    unpruned = [None if reading is None else reading.value for reading in bound]

    paper_line, our_line, difference, count = [], [], [], []
    for column, printed, reading in zip(columns, one.printed, found, strict=True):
        misprint = table.misprints.get((one.section, one.method, column.name))
        paper_line.append(made.mark(_number(printed, column.digits), misprint and f"misprint: {misprint}"))
        labels = "; ".join(reading.labels) if reading else None
        our_line.append(made.mark(_number(reading and reading.value, column.digits), labels))
        both = printed is not None and reading is not None
        difference.append(f"{reading.value - printed:+.{column.digits}f}" if both else NOTHING)  # type: ignore[union-attr, operator]
        count.append(NOTHING if reading is None or reading.n is None else str(reading.n))
    for name in table.averages:
        shown = one.average.get(name)
        misprint = table.misprints.get((one.section, one.method, name))
        again = average(columns, one.printed, table.rows[upper].printed, name)
        paper_line += [made.mark(_number(shown), misprint and f"misprint: {misprint}"), _average(made, again, True)]
        own, against_paper = (
            average(columns, ours, unpruned, name),
            average(columns, ours, table.rows[upper].printed, name),
        )
        our_line += [_average(made, own), _average(made, against_paper)]
        for other in (own, against_paper):
            difference.append(f"{other.value - shown:+.1f}" if other and shown is not None else NOTHING)
            count.append(NOTHING if other is None else f"{len(other.used)} of {other.of}")
    head = [one.section, one.method]
    if one.pruner is None:
        return [[*head, made.mark("paper", "reported, not run: no public code"), *paper_line]]
    return [
        [*head, "paper", *paper_line],
        [*head, "ours", *our_line],
        [*head, "difference", *difference],
        [*head, "n", *count],
    ]


def _number(value: float | None, digits: int = 1) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _average(made: Grid, one: Average | None, printed: bool = False) -> str:
    if one is None:
        return NOTHING
    few = None if printed or len(one.used) == one.of else f"over {', '.join(one.used)} only"
    return made.mark(f"{one.value:.1f}", few)
