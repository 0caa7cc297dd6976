"""Presets of the paper's rows: the tables use them, and they do what is known of the rows."""

import pytest

from flowcut import FastV, FlowCut, parse_pruner
from flowcut.methods.schedule import Schedule
from flowcut.registry import PAPER_ROWS, paper_row
from scripts.tables.make import NUMBERS, table_of


@pytest.mark.parametrize("number", NUMBERS)
def test_tables_are_made_of_presets(number):
    """Rows that change FlowCut's own fields (ablations) apart."""
    for one in table_of(number).rows:
        pruner = parse_pruner(one.pruner or "none")
        if pruner is None or (isinstance(pruner, FlowCut) and pruner != FlowCut(pruner.budget)):
            continue
        assert paper_row(one.pruner.partition(":")[0], pruner.budget, number) == pruner


def test_what_is_known_is_used_somewhere():
    used = {
        (one.pruner.partition(":")[0], parse_pruner(one.pruner).budget, number)
        for number in NUMBERS
        for one in table_of(number).rows
        if one.pruner not in (None, "none")
    }
    assert set(PAPER_ROWS) <= used


def test_known_rows_meet_what_they_are_known_by():
    assert paper_row("flowcut", 192) == FlowCut(192)
    assert paper_row("fastv", 64) == FastV(64)  # table 1: the mean over layers
    vtw: Schedule = paper_row("vtw", 90, 9).schedule(576, 32)
    assert vtw.entering == [576] * 5 + [0] * 27
    for method in ("sparsevlm", "pdrop"):
        schedule = paper_row(method, 160, 2).schedule(2880, 32)
        mean = schedule.outputs if method == "sparsevlm" else schedule.inputs
        assert mean == pytest.approx(160, abs=1.5)
        with pytest.raises(ValueError, match="cannot be met"):
            parse_pruner(f"{method}:budget=160").schedule(2880, 32)


def test_unknown_methods_are_named():
    with pytest.raises(ValueError, match="unknown method 'topv'; choose one of flowcut"):
        paper_row("topv", 64)
