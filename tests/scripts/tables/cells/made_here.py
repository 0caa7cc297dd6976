"""Cells on miniature data and a tiny model, produced without new interpreters."""

import contextlib
import importlib
import io
from types import SimpleNamespace

import pytest

from llava.eval import launch
from llava.eval.answering import chunks
from scripts.tables.cells import produce
from scripts.tables.cells.follow import Ended
from scripts.tables.cells.spec import CellSpec

FLAGS = ("--devices", "cpu", "--max_new_tokens", "3")
PRUNER = "fastervlm:budget=5"


class InThisProcess:
    """In place of Popen: an answering program without a new interpreter."""

    def __init__(self, command, env):
        importlib.import_module(command[2]).main(command[3:])

    def wait(self):
        return 0


def answered_here(command):
    """In place of `follow`: the launcher, without new interpreters."""
    assert command[1:3] == ["-m", "llava.eval.launch"]
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(chunks, "subprocess", SimpleNamespace(Popen=InThisProcess))
        launch.main(command[3:])
    return Ended(0, said.getvalue().splitlines())


def nothing_may_run(*_):
    raise AssertionError("the launcher was started")


def made_here(cell):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(produce, "follow", answered_here)
        return produce.make_cell(cell)


def at(root, name="pope", pruner=PRUNER, **more):
    return CellSpec(
        "v1_5", name, str(root / "model"), pruner, root / "results", data=root / "eval", flags=FLAGS, **more
    )
