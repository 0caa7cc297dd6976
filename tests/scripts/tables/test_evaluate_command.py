"""A method of one's own beside committed rows: another's cells are compared question by question, and left alone."""

import json
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

from flowcut.registry import METHODS
from scripts.embedded.data import write_benchmark
from scripts.embedded.questions import MAKERS
from scripts.embedded.rows import BUDGETS
from scripts.tables import cell, evaluate
from tests.ending import ending

OWN = """
    from dataclasses import dataclass
    from typing import ClassVar
    from flowcut import Scorer

    @dataclass(frozen=True)
    class Mine(Scorer):
        name: ClassVar[str] = "mine-of-the-test"
        def score(self, view):
            return view.global_attention()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, llava_folder) -> Path:
    """A benchmark of nine questions, committed cells of it, and a file with FasterVLM under another name."""
    root = tmp_path_factory.mktemp("evaluate")
    write_benchmark(root / "data", "test", scenes=3, questions=3, kinds=tuple(MAKERS))
    (root / "mine.py").write_text(textwrap.dedent(OWN))
    flags = ["--model-path", str(llava_folder), "--data", str(root / "data"), "--out", str(root), "--device", "cpu"]
    cell.main([*flags, "--pruner", "none", "--pruner", "fastervlm:budget=5"])
    return root


@pytest.fixture
def flags(folder, llava_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "COMMITTED", folder / "embedded")
    before = dict(METHODS)
    shared = ["--model-path", str(llava_folder), "--data", str(folder / "data"), "--device", "cpu"]
    yield [*shared, "--out", str(tmp_path / "own")]
    METHODS.clear()
    METHODS.update(before)


def test_a_class_in_a_file(folder, flags, capsys):
    committed = {file: file.read_bytes() for file in (folder / "embedded").glob("*.json")}
    assert evaluate.main([f"{folder}/mine.py:Mine", "--budget", "5", *flags]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    [row] = json.loads(last)["rows"]
    assert (row["pruner"], row["n"], row["committed_rows"]) == ("mine-of-the-test:budget=5", 9, 2)
    same = json.loads((folder / "embedded" / "fastervlm_5.json").read_text())
    assert (row["accuracy"], row["ci95"]) == (same["accuracy"], same["ci95"])  # it is FasterVLM
    [told] = [line for line in lines if line.startswith("  fastervlm:budget=5")]
    assert "+0.0 (+0.0 to +0.0) on 9 questions" in told
    assert [line for line in lines if line.startswith("> ")] == [line for line in lines if "mine-of" in line]
    assert {file: file.read_bytes() for file in (folder / "embedded").glob("*.json")} == committed


def test_rows_of_other_data_are_not_compared(folder, flags, tmp_path, capsys):
    write_benchmark(tmp_path / "data", "dev", scenes=2, questions=2, kinds=tuple(MAKERS))
    assert evaluate.main(["fastervlm", "--budget", "5", *flags, "--data", str(tmp_path / "data")]) == 0
    out = capsys.readouterr().out
    assert "is of this model and these questions" in out
    assert json.loads(out.splitlines()[-1])["rows"][0]["committed_rows"] == 0


def test_every_committed_row_is_compared():
    """A plan of whose origin nothing is known has no row refused."""
    plan = SimpleNamespace(origin=lambda limit: {})
    for budget in BUDGETS:
        found = {one["method"] for one in evaluate.committed(plan, budget)}
        assert found | {"vtw"} == set(METHODS) - {"flowcut-qwen2-vl-released"} | {"none"}


@pytest.mark.parametrize(
    ("method", "said"),
    [("nothing", "unknown pruner"), ("no.py:Mine", "no.py does not exist"), ("flowcut:budget=3", "has a budget")],
)
def test_methods_that_cannot_be(flags, method, said, capsys):
    assert ending(evaluate.main, [method, *flags]) == 2
    assert said in capsys.readouterr().err
