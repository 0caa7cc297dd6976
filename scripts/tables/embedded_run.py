"""Runs what a table needs on the embedded model, and reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.models.llava_checkpoint import load_checkpoint
from scripts.tables import embedded_table
from scripts.tables.cell import Bench, Cell, Plan, measure
from scripts.tables.grid import Grid
from scripts.tables.spec import Table
from scripts.tables.times import EFFICIENCY, how_taken, measure_times, times_of

MODEL = "playground/embedded"
DATA = Path("playground/data/embedded")
LIMIT = 500
QUICK = ("--questions", "32", "--warm-up", "4", "--max-new-tokens", "8")
TRAINED = {"none": "trained_576", "flowcut:budget=192": "trained_192", "flowcut:budget=128": "trained_128"}


def embedded_grid(table: Table, results: Path, limit: int | None, render: bool, command: str) -> Grid:
    """The table on the embedded model. render: run nothing.

    Raises ValueError when cells are missing that may not be made, or that this program does not make.
    """
    texts = embedded_table.pruners(table)
    if table.number == 6:
        folders = {text: results / TRAINED[text] / "embedded" for text in texts}
        record = results / "embedded" / "training.json"
        if not record.is_file():
            raise ValueError(f"{record} does not exist; scripts/embedded/train_pruned.sh trains and makes it")
        cells = read_cells(texts, folders)
        return embedded_table.training(table, cells, json.loads(record.read_text("utf-8")))
    folder = results / "embedded"
    if not render:
        make_cells(texts, results, LIMIT if limit is None else limit, command)
    cells = read_cells(texts, dict.fromkeys(texts, folder))
    if table.number != 5:
        return embedded_table.accuracy(table, cells)
    if not render:
        measure_times(MODEL, texts, folder / EFFICIENCY, DATA / "questions.jsonl", DATA / "images", QUICK)
    times = times_of(folder / EFFICIENCY)
    if missing := [text for text in texts if text not in times]:
        raise ValueError(f"{folder / EFFICIENCY} lacks {', '.join(missing)}; run this without --render")
    return embedded_table.efficiency(table, cells, times, how_taken(folder / EFFICIENCY))


def make_cells(texts: Sequence[str], results: Path, limit: int, command: str) -> None:
    """Make the cells that are missing. Raises ValueError for missing data and questions that failed."""
    if not (DATA / "questions.jsonl").is_file():
        raise ValueError(f"{DATA} holds no questions; make them by python -m scripts.embedded.data --out {DATA}")
    checkpoint = load_checkpoint(MODEL, default_mode="vicuna_v1")
    bench = Bench(checkpoint, DATA, results, limit, command=command)
    _, problems = measure([Plan(bench, Cell("embedded", text)) for text in texts])
    if problems:
        raise ValueError(f"{len(problems)} questions were not answered, first {problems[0].where}: {problems[0].what}")


def read_cells(texts: Sequence[str], folders: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Raises ValueError for cells that are not there."""
    files = {text: folders[text] / f"{Cell('embedded', text).name}.json" for text in texts}
    if missing := [str(file) for file in files.values() if not file.is_file()]:
        raise ValueError(f"{len(missing)} cells are not there, first {missing[0]}; run this without --render")
    return {text: json.loads(file.read_text("utf-8")) for text, file in files.items()}
