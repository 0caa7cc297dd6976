"""Specifications of cells: refused when wrong, named, and the same as what the documented script does."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from llava.eval import launch
from llava.eval.benchmarks.registry import MODULES
from scripts.tables.cells.spec import FAMILIES, SCRIPTS, CellSpec
from tests.scripts.tables.cells.made_here import PRUNER


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"benchmark": "gqq"}, "no benchmark 'gqq'"),
        ({"family": "v1_6", "benchmark": "vizwiz"}, "v1_6 has no script for vizwiz; give one of v1_5"),
        ({"family": "v1_7"}, "v1_7 has no script for pope; give one of qwen2_vl, v1_5, v1_6"),
        ({"pruner": "flowcat:budget=3"}, "unknown pruner"),
        ({"limit": 0}, "limit=0"),
        ({"flags": ("--limit", "3")}, "give them to the cell"),
        ({"flags": ("--pruner", "none")}, "give them to the cell"),
        ({"flags": ("--split", "nope")}, "no split 'nope'"),
        ({"flags": ("--seed", "one")}, "invalid int value"),
        ({"flags": ("--node", "4")}, "--node 4 of 1"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, more, message):
    given = {"family": "v1_5", "benchmark": "pope", "model": "m", "pruner": PRUNER, "out": tmp_path} | more
    with pytest.raises(ValueError, match=message) as refused:
        CellSpec(**given)
    assert "\n" not in str(refused.value)


def test_another_split_has_a_file_of_its_own(tmp_path):
    cell = CellSpec("v1_5", "vqav2", "org/model-7b", "none", tmp_path)
    assert cell.file == tmp_path / "model-7b" / "vqav2" / "none.json"
    assert replace(cell, flags=("--split", "val")).file.name == "none_val.json"
    assert replace(cell, flags=("--split", "val"), limit=9).file.name == "none_val_limit_9.json"
    assert replace(cell, flags=("--split", "test-dev")).file.name == "none.json"


def test_a_folder_of_scripts_that_is_no_family_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.tables.cells.spec.SCRIPTS", tmp_path)
    (tmp_path / "mine" / "eval").mkdir(parents=True)
    (tmp_path / "mine" / "eval" / "pope.sh").touch()
    with pytest.raises(ValueError, match="no family 'mine'; give one of v1_5, v1_6, qwen2_vl, video"):
        CellSpec("mine", "pope", "m", PRUNER, tmp_path)


@pytest.mark.parametrize(
    "script",
    [file for family in FAMILIES for file in sorted((SCRIPTS / family / "eval").glob("*.sh")) if file.stem in MODULES],
    ids=lambda file: f"{file.parts[-3]}-{file.stem}",
)
def test_a_cell_is_evaluated_as_its_command_in_a_shell_does(script, tmp_path):
    """Both ask for the same, down to the conversation mode, which `FAMILIES` and the scripts both write down.

    The script's PYTHON only notes its arguments, the last time that it is called.
    """
    note = tmp_path / "python"
    note.write_text('#!/bin/bash\nprintf "%s\\n" "$@" > "$(dirname "$0")/arguments"\n')
    note.chmod(0o755)
    flags = ("--temperature", "0.2", "--judge-model", "a judge", "--judge-requests", "asked.jsonl")
    data, family = Path("data of mine"), script.parts[-3]
    cell = CellSpec(family, script.stem, "org/model-7b", "flowcut:budget=64", tmp_path, 7, data, flags)
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(note)}
    subprocess.run(["bash", "-c", cell.command], cwd=SCRIPTS.parent, env=environment, check=True)
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert arguments[:2] == ["-m", "llava.eval.launch"]
    assert launch.spec_of(arguments[2:]) == cell.evaluation
    assert cell.evaluation.answering.conv_mode == (None if script.stem == "embedded" else FAMILIES[family])
