"""The table of printed and counted TFLOPs: its numbers counted another way."""

import csv
import io
from pathlib import Path

import pytest

from scripts.tables import tflops
from scripts.tables.paper.counting import Case
from scripts.tables.paper.printed_tflops import FIVE, LINES, NINE
from scripts.tables.render.marked_files import fill

ROOT = Path(__file__).parents[3]


def rows(argv, capsys):
    tflops.main([*argv, "--csv"])
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_the_page_is_what_the_program_prints(capsys):
    tflops.main([])
    page = (ROOT / tflops.PAGE).read_text("utf-8")
    assert fill(page, "tflops", capsys.readouterr().out.rstrip("\n")) == page


def test_it_writes_the_page(tmp_path, monkeypatch, capsys):
    page = tmp_path / "cost.md"
    page.write_text("above\n<!-- tflops -->\nold\n<!-- /tflops -->\nbelow\n")
    monkeypatch.setattr(tflops, "PAGE", page)
    tflops.main(["--write"])
    assert capsys.readouterr().out == ""
    assert tflops.table().markdown() in page.read_text()
    page.write_text("no place")
    with pytest.raises(SystemExit, match="has no <!-- tflops -->"):
        tflops.main(["--write"])


def test_every_printed_number_is_there():
    there = {(line.table.number, line.section, line.method) for line in LINES}
    printed = {(table.number, row.section, row.method): row.printed for table in (FIVE, NINE) for row in table.rows}
    # Table 9 repeats two numbers of Table 5.
    assert printed.keys() - there == {(9, "576 tokens", "Vanilla"), (9, "64 tokens", "FlowCut")}
    assert [printed[key][0] for key in sorted(printed.keys() - there)] == [8.82, 1.95]
    numbers = "8.82 2.26 2.31 2.16 2.03 1.95 31.03 7.35 7.62 6.78 4.72 4.29 1.95 2.01 1.96 1.97 4.27 4.25"
    assert {line.printed for line in LINES} == set(map(float, numbers.split()))


def llama(visual, text=62):
    """TFLOPs of a 7B Llama's 32 layers."""
    lengths = [count + text for count in visual]
    return sum(2 * (4 * n * 4096**2 + 3 * n * 4096 * 11008 + 2 * n**2 * 4096) for n in lengths) / 1e12


def ahead(projected, runs=1):
    """TFLOPs of as many runs of CLIP-L as one number, and of the projector."""
    return runs * 0.3819 + 2 * projected * (1024 * 4096 + 4096**2) / 1e12


@pytest.mark.parametrize(
    ("method", "model", "counted", "visual", "projected"),
    [
        ("Vanilla", "LLaVA-1.5-7B", "all tokens", [576] * 32, 576),
        ("FastV", "LLaVA-1.5-7B", "64 tokens from layer", [576] + [64] * 31, 576),
        ("FastV", "LLaVA-1.5-7B", "64 on average", [576] * 2 + [30] * 30, 576),
        ("VisionZip", "LLaVA-1.5-7B", "cut after", [64] * 32, 64),
        ("VTW (K=5)", "LLaVA-1.5-7B", "all tokens in five", [576] * 5 + [0] * 27, 576),
        ("Vanilla", "LLaVA-NeXT-7B", "five tiles", [2880] * 32, 2880),
        ("Vanilla", "LLaVA-NeXT-7B", "the same", [2340] * 32, 2880),
        ("FastV", "LLaVA-NeXT-7B", "160 tokens from", [2880] * 2 + [160] * 30, 2880),
        ("VisionZip", "LLaVA-NeXT-7B", "five tiles", [160] * 32, 160),
    ],
)
def test_numbers_by_hand(method, model, counted, visual, projected, capsys):
    found = [row for row in rows([], capsys) if (row["method"], row["model"]) == (method, model)]
    [row] = [row for row in found if row["counted as"].startswith(counted)]
    expected = llama(visual) + ahead(projected, runs=5 if "NeXT" in model else 1)
    assert float(row["ours"]) == pytest.approx(expected, abs=0.006)
    assert float(row["difference, %"]) == pytest.approx(100 * (expected / float(row["printed"]) - 1), abs=0.06)
    assert float(row["language model alone"]) == pytest.approx(llama(visual), abs=0.006)


def test_what_does_not_fit_says_so(capsys):
    found = rows([], capsys)
    fitting = [row for row in found if row["ours"] != "-" and abs(float(row["difference, %"])) <= 1]
    assert [(row["model"][6:9], row["method"], row["tokens"]) for row in fitting] == [
        ("1.5", "Vanilla", "576"),
        ("1.5", "FastV", "64"),
        ("1.5", "SparseVLM", "64"),
        ("1.5", "VisionZip", "64"),
        ("1.5", "FlowCut", "64"),
        ("1.5", "FlowCut", "64"),
        ("NeX", "FastV", "160"),
        ("1.5", "FlowCut", "236"),
    ]
    assert all(row["note"] for row in found if row not in fitting)
    assert [row["method"] for row in found if row["ours"] == "-"] == ["SparseVLM", "PDrop", "ST3"]


@pytest.mark.parametrize(
    "line",
    [line for line in LINES if line.count and line.solvable],
    ids=lambda line: f"{line.table.number} {line.method} {line.how}",
)
def test_no_neighbour_comes_nearer_to_the_printed_number(line):
    case = Case(*tflops.configs(), 62, 0.95, line.tiles)
    best = tflops.solve(line, case)
    off = [abs(line.count(case, best + step).total / 1e12 - line.printed) for step in (-1, 0, 1)]
    assert off[1] == min(off)


def test_a_printed_number_out_of_reach_has_no_tokens():
    [line] = [line for line in LINES if line.how == "64 on average, cut before layer 2"]
    assert tflops.solve(line, Case(*tflops.configs(), 500, 0.95)) is None


def test_what_is_assumed_can_be_changed(capsys):
    usual, longer, even = (
        {row["counted as"]: row["ours"] for row in rows(flags, capsys)}
        for flags in ([], ["--text-tokens", "0"], ["--entropy-ratio", "1"])
    )
    assert float(longer["all tokens"]) == pytest.approx(llama([576] * 32, text=0) + ahead(576), abs=0.006)
    # Attention that is spread evenly drops nothing before the last cut: what is left to save is the layer behind it.
    assert float(even["equation 3 to layer 22, then layer 23"]) > float(usual["equation 3 to layer 22, then layer 23"])
    changed = {name for name in usual if usual[name] != even[name]}
    assert changed == {line.how for line in LINES if line.method == "FlowCut"}
    tflops.main(["--text-tokens", "70", "--entropy-ratio", "0.9"])
    assert "70 text tokens; FlowCut with an entropy ratio of 0.9" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--text-tokens", "-1"], ["--entropy-ratio", "1.2"], ["--entropy-ratio", "nan"]])
def test_flags_that_cannot_be(flags):
    with pytest.raises(SystemExit, match=f"error: {flags[0]} .* is not") as error:
        tflops.main(flags)
    assert "\n" not in str(error.value)
