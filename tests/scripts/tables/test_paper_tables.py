"""The paper's numbers as typed in, checked against each other; tables beside readings, checked by hand."""

import csv
import io
from html.parser import HTMLParser

import pytest

from flowcut import parse_pruner
from scripts.embedded.rows import transferred
from scripts.tables.make import NUMBERS, table_of
from scripts.tables.paper.spec import Table, benchmarks, measured, row
from scripts.tables.render import against_paper, embedded_shape
from scripts.tables.render.against_paper import Reading
from scripts.tables.render.grid import Grid

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


SMALL = Table(
    number=1,
    title="small",
    family="v1_5",
    model="m",
    columns=(measured("TFLOPs", "flops", "total", 2), *benchmarks("GQA MME")),
    rows=(
        row("Vanilla", "none", "8.82 60.0 1800 Avg=100", "576 tokens"),
        row("FlowCut", "flowcut:budget=64", "1.95 54.0 1440 Avg=85.0", "64 tokens"),
        row("ST3", None, "4.27 50.0 - Avg=83.3", "64 tokens"),
    ),
    misprints={("64 tokens", "FlowCut", "MME"): "wrong"},
    notes=("a note",),
)


def test_a_table_beside_what_was_measured():
    readings = {
        (0, "GQA"): Reading(50.0, 100),
        (0, "MME"): Reading(1600.0, 20),
        (1, "GQA"): Reading(45.0, 100, ("subset",)),
        (1, "TFLOPs"): Reading(2.0),
    }
    made = against_paper.grid(SMALL, readings, "m")
    by_kind = {(line[1], line[2].split(" [")[0]): line[3:] for line in made.lines}
    footnotes = dict(note.split("] ", 1) for note in made.footnotes)
    assert set(footnotes.values()) == {
        "misprint: wrong",
        "subset",
        "over GQA only",
        "reported, not run: no public code",
    }
    plain = {key: [cell.split(" [")[0] for cell in cells] for key, cells in by_kind.items()}
    # columns: TFLOPs, GQA, MME, mean ratio to the own unpruned model, mean ratio to the paper's
    assert plain["FlowCut", "paper"] == ["1.95", "54.0", "1440", "85.0", "85.0"]
    assert plain["FlowCut", "ours"] == ["2.00", "45.0", "-", "90.0", "75.0"]
    assert plain["FlowCut", "difference"] == ["+0.05", "-9.0", "-", "+5.0", "-10.0"]
    assert plain["FlowCut", "n"] == ["-", "100", "-", "1 of 2", "1 of 2"]
    assert plain["Vanilla", "ours"] == ["-", "50.0", "1600", "100.0", "86.1"]
    assert ("ST3", "ours") not in plain
    assert plain["ST3", "paper"] == ["4.27", "50.0", "-", "83.3", "83.3"]


def test_nothing_measured_is_shown_as_nothing():
    made = against_paper.grid(SMALL, {}, "m")
    ours = [line for line in made.lines if line[2] != "paper" and not line[2].startswith("paper [")]
    assert ours
    assert all(set(line[3:]) == {"-"} for line in ours)


class _Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.rows, self.inside = [], False

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        self.inside = tag in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1].append(data)

    def handle_endtag(self, tag):
        self.inside = False


def test_the_three_forms_say_the_same(tmp_path):
    made = Grid("T <1>", ["method", "a & b"], [["x, y", "1.0"], ["<z>", "-"]], ["note"])
    made.lines[0][1] = made.mark("1.0", "why")
    assert made.mark("2", "why") == "2 [1]"
    files = made.write(tmp_path / "table")
    assert [file.suffix for file in files] == [".md", ".csv", ".html"]
    expected = [made.header, *made.lines]
    assert list(csv.reader(io.StringIO(files[1].read_text()))) == expected
    parser = _Cells()
    parser.feed(files[2].read_text())
    assert parser.rows == expected
    markdown = [line for line in files[0].read_text().splitlines() if line.startswith("| ")]
    assert [line.strip("| ").split(" | ") for line in markdown if "---" not in line] == expected
    assert "[1] why" in files[0].read_text()
    assert "note" in files[2].read_text()


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: f"table{table.number}")
def test_every_row_has_its_counterpart_on_the_embedded_model(table):
    for text in embedded_shape.pruners(table):
        assert text == "none" or parse_pruner(text).budget < 576
    for one in table.rows:
        assert (embedded_shape.pruner_of(table, one) is None) == (one.pruner is None)


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
