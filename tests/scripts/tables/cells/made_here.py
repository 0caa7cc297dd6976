"""Cells on miniature data and a tiny model, produced without new interpreters."""

import pytest

from scripts.tables.cells.produce import make_cell
from scripts.tables.cells.spec import CellSpec
from tests.llava.eval.in_this_process import answer_in_this_process

FLAGS = ("--devices", "cpu", "--max_new_tokens", "3")
PRUNER = "fastervlm:budget=5"


def nothing_may_run(*_, **__):
    raise AssertionError("an evaluation was started")


def made_here(cell):
    with pytest.MonkeyPatch.context() as patch:
        answer_in_this_process(patch)
        return make_cell(cell)


def at(root, name="pope", pruner=PRUNER, **more):
    return CellSpec(
        "v1_5", name, str(root / "model"), pruner, root / "results", data=root / "eval", flags=FLAGS, **more
    )
