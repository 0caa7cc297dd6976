"""A number that was measured for a place in a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Measured(NamedTuple):
    """A measured number.

    Attributes:
        n: how many questions it is over; None where that says nothing.
        labels: what has to be said with it.
    """

    value: float
    n: int | None = None
    labels: tuple[str, ...] = ()


MeasuredTable = Mapping[tuple[int, str], Measured]
"""(index of the row, name of the column) -> what was measured."""
