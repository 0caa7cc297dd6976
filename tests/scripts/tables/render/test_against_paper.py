"""Tables with readings, checked by hand."""

from scripts.tables.cells.measured import Measured
from scripts.tables.paper.spec import Table, benchmarks, measured, row
from scripts.tables.render import against_paper

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
        (0, "GQA"): Measured(50.0, 100),
        (0, "MME"): Measured(1600.0, 20),
        (1, "GQA"): Measured(45.0, 100, ("subset",)),
        (1, "TFLOPs"): Measured(2.0),
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
