"""The curves: their points are the numbers of the results page, and names do not lie on each other."""

import itertools
import re
from pathlib import Path

import pytest

from scripts.tables import curves, methods
from scripts.tables.cells.points import as_csv, label, points_of
from scripts.tables.render.curves import by_method, spaced

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def points():
    return points_of(methods.read_cells(ROOT / "results/embedded"))


def test_points_are_the_rows_of_the_results_page(points):
    page = (ROOT / "docs/results.md").read_text("utf-8")
    sections = re.findall(r"### (\d+) of 576\n(.*?)\n\n\d+ questions", page, re.DOTALL)
    assert len(sections) == 4
    for budget, table in sections:
        rows = [line.replace("*", "").strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
        shown = {row[0]: (row[1], row[5]) for row in rows[2:] if row[0] != "no pruning"}
        own = {
            label(one.method): (f"{one.accuracy:.1f}", f"{one.gflops:.2f}")
            for one in points[1:]
            if one.budget == int(budget)
        }
        assert own == shown


def test_the_figures_are_those_of_the_cells(points, monkeypatch):
    monkeypatch.chdir(ROOT)
    curves.main(["--check"])
    assert curves.digest(as_csv(points)) in curves.FIGURES[0].read_text("utf-8")


def test_stale_figures_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "old.svg").write_text("points 0123")
    monkeypatch.setattr(curves, "FIGURES", (tmp_path / "old.svg",))
    with pytest.raises(SystemExit, match=r"out of date: .*old.svg; run python -m scripts.tables.curves"):
        curves.main(["--check"])


def test_every_method_has_a_name_and_one_line(points):
    lines = by_method(points)
    assert len({label(name) for name in lines}) == len(lines)
    assert label("prumerge_plus") == "PruMerge+"
    for own in lines.values():
        assert [point.tokens for point in own] == sorted(point.tokens for point in own)
    assert next(reversed(lines)).startswith("flowcut")


@pytest.mark.parametrize("values", [[1.0], [5, 1, 1.1, 1.2, 9], [0, 0, 0], [3, 2, 1], [0, 0.9, 1.0, 2.5]])
def test_names_are_apart_in_their_order_and_centred(values):
    placed = spaced(values, 1.0)
    order = sorted(range(len(values)), key=lambda index: values[index])
    gaps = [placed[b] - placed[a] for a, b in itertools.pairwise(order)]
    assert all(gap >= 1 - 1e-9 for gap in gaps)
    assert sum(placed) == pytest.approx(sum(values))


def test_drawn_again_without_old_files(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(curves, "FIGURES", (tmp_path / "new.svg",))
    curves.main([])
    drawn = (tmp_path / "new.svg").read_text("utf-8")
    assert all(f">{name}</text>" in drawn for name in ("FlowCut", "ToMe", "SCOPE", "no pruning"))
    curves.main(["--check"])
