"""The paper's tables, by their numbers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scripts.tables.paper.spec import Table

NUMBERS = range(1, 12)


def table_of(number: int) -> Table:
    """Table `number` of the paper, one of `NUMBERS`."""
    return importlib.import_module(f"scripts.tables.paper.table{number:02d}").TABLE
