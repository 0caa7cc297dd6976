"""Rows of the paper's tables on the embedded model, with the same fractions of visual tokens."""

from __future__ import annotations

from scripts.embedded.rows import transferred
from scripts.tables.paper.spec import Row, Table


def pruner_of(table: Table, one: Row) -> str | None:
    """The row's text form on the embedded model; None where there is no code."""
    return one.embedded or (None if one.pruner is None else transferred(one.pruner, one.of or table.tokens))


def pruners(table: Table) -> list[str]:
    """The pruners to measure, each once."""
    texts = (pruner_of(table, one) for one in table.rows)
    return list(dict.fromkeys(text for text in texts if text is not None))
