"""Cells and times that the paper's tables need on the embedded model: made where they are missing, and read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.models.llava_checkpoint import load_checkpoint
from scripts.embedded.rows import TRAINED
from scripts.tables.cells.file_names import cell_name
from scripts.tables.cells.in_process import Cell, Plan, Setup, measure
from scripts.tables.cells.times import EFFICIENCY, measure_times
from scripts.tables.paper.embedded_rows import pruners
from scripts.tables.paper.spec import Table

MODEL = "playground/embedded"
DATA = Path("playground/data/embedded")
LIMIT = 500
QUICK = ("--questions", "32", "--warm-up", "4", "--max-new-tokens", "8")


def make_missing(table: Table, results: Path, limit: int | None, command: str) -> None:
    """Make the cells and times that a table needs and that are missing. Models of table 6 are not trained here.

    limit: number of questions; None for `LIMIT`. command: what the user called, for the cells' JSON.

    Raises:
        ValueError: data is missing, or questions were not answered.
    """
    if table.number == 6:
        return
    texts = pruners(table)
    make_cells(texts, results, LIMIT if limit is None else limit, command)
    if table.number == 5:
        file = results / "embedded" / EFFICIENCY
        measure_times(MODEL, texts, file, DATA / "questions.jsonl", DATA / "images", QUICK)


def make_cells(texts: Sequence[str], results: Path, limit: int, command: str) -> None:
    """Make the cells that are missing, one for each text form of a pruner.

    Raises:
        ValueError: data is missing, or questions were not answered.
    """
    if not (DATA / "questions.jsonl").is_file():
        raise ValueError(f"{DATA} holds no questions; make them by python -m scripts.embedded.data --out {DATA}")
    checkpoint = load_checkpoint(MODEL, default_mode="vicuna_v1")
    setup = Setup(checkpoint, DATA, results, limit, command=command)
    _, problems = measure([Plan(setup, Cell("embedded", text)) for text in texts])
    if problems:
        raise ValueError(f"{len(problems)} questions were not answered, first {problems[0].where}: {problems[0].what}")


def read_cells(table: Table, results: Path) -> dict[str, dict[str, Any]]:
    """The cells that a table needs, by text form.

    Raises:
        ValueError: a cell does not exist.
    """
    folders = {text: results / (TRAINED[text] if table.number == 6 else "") / "embedded" for text in pruners(table)}
    files = {text: folder / f"{cell_name(text)}.json" for text, folder in folders.items()}
    if missing := [str(file) for file in files.values() if not file.is_file()]:
        raise ValueError(f"{len(missing)} cells are not there, first {missing[0]}; run this without --render")
    return {text: json.loads(file.read_text("utf-8")) for text, file in files.items()}
