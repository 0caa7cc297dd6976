"""The paper's numbers as typed in, checked against each other; their rows on the embedded model."""

import pytest

from flowcut import parse_pruner
from scripts.embedded.rows import transferred
from scripts.tables.paper.embedded_rows import pruner_of, pruners
from scripts.tables.paper.spec import Table, benchmarks, row
from scripts.tables.paper.tables import NUMBERS, table_of
from scripts.tables.render import against_paper

TABLES = {number: table_of(number) for number in NUMBERS}


def number(table: int, method: str, column: str, section: str | None = None) -> float | None:
    own = TABLES[table]
    [found] = [one for one in own.rows if one.method == method and section in (None, one.section)]
    return found.printed[[each.name for each in own.columns].index(column)]


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: f"table{table.number}")
def test_averages_follow_from_their_rows(table):
    """All but the two misprints of table 1 are the mean ratio to the unpruned row; that is how averages are taken."""
    for index, one in enumerate(table.rows):
        upper = table.rows[table.upper(index)].printed
        for name, printed in one.average.items():
            again = against_paper.average(table.columns, one.printed, upper, name)
            misprint = (one.section, one.method, name) in table.misprints
            assert (abs(again.value - printed) < 0.075) == (not misprint), (one.section, one.method)


def test_tables_agree_where_they_repeat_each_other():
    for column in ("TextVQA", "GQA", "POPE"):
        assert number(7, "FlowCut: all three", column) == number(1, "FlowCut", column, "128 tokens")
    for column in ("TextVQA", "VQAv2", "POPE", "MMB", "SQA"):
        assert number(9, "FlowCut", column, "64 tokens") == number(1, "FlowCut", column, "64 tokens")
    assert number(10, "0:10", "POPE") == number(7, "Multi-layer: adaptive number; multi-criteria", "POPE")
    assert number(11, "last layer only", "POPE") == number(7, "Single layer: cumulative; multi-criteria", "POPE")
    assert number(10, "5:5", "POPE") == number(11, "every 2 layers", "POPE") == 85.2
    for tokens in (192, 128, 64):
        same = [row for row in TABLES[1].rows if row.section == f"{tokens} tokens"]
        assert {parse_pruner(row.pruner).budget for row in same} == {tokens}


def test_rows_that_repeat_each_other_share_a_pruner():
    """So that one cell serves all tables."""

    def text(table, method):
        [found] = [one.pruner for one in TABLES[table].rows if one.method == method]
        return found

    assert text(10, "0:10") == text(7, "Multi-layer: adaptive number; multi-criteria")
    assert text(11, "last layer only") == text(7, "Single layer: cumulative; multi-criteria")
    assert text(10, "5:5") == text(11, "every 2 layers") == text(7, "FlowCut: all three") == "flowcut:budget=128"


def test_printed_speedups_follow_from_printed_times():
    table = TABLES[5]
    for index, one in enumerate(table.rows):
        first = table.rows[table.upper(index)].printed
        for time, ratio in ((0, 1), (2, 3)):
            misprint = (one.section, one.method, table.columns[ratio].name) in table.misprints
            # both sides of the ratio are rounded
            assert (abs(first[time] / one.printed[time] - one.printed[ratio]) < 0.056) == (not misprint)


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: f"table{table.number}")
def test_every_row_has_its_counterpart_on_the_embedded_model(table):
    for text in pruners(table):
        assert text == "none" or parse_pruner(text).budget < 576
    for one in table.rows:
        assert (pruner_of(table, one) is None) == (one.pruner is None)


@pytest.mark.parametrize(
    ("text", "tokens", "expected"),
    [
        ("none", 576, "none"),
        ("flowcut:budget=640", 2880, "flowcut:budget=128"),
        ("flowcut:budget=0.333", 576, "flowcut:budget=192"),
        ("flowcut:budget=128,history=0,value=false", 576, "flowcut:budget=128,history=0,value=false"),
        ("fastv:budget=192", 576, "fastv:budget=192,layer=1"),
        ("fastv:budget=64", 576, "fastv:budget=64,layer=1,keep=64"),
        ("pdrop:budget=32", 256, "pdrop:budget=72,layers=1/2/3,keep=288/144/72"),
    ],
)
def test_rows_keep_their_share_of_tokens(text, tokens, expected):
    assert transferred(text, tokens) == expected


def test_a_row_with_too_few_numbers_is_refused():
    with pytest.raises(ValueError, match="FlowCut has 1 numbers"):
        Table(1, "t", "v1_5", "m", benchmarks("GQA POPE"), (row("FlowCut", "flowcut:budget=64", "1"),))
    with pytest.raises(ValueError, match="rows that are not there"):
        Table(1, "t", "v1_5", "m", benchmarks("GQA"), (row("A", "none", "1"),), misprints={("", "B", "GQA"): "x"})
