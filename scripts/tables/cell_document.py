"""The JSON of a benchmark's cell, out of what the evaluation scripts left behind."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llava.eval import launch
from llava.eval.efficiency.answer_costs import costs_of
from llava.eval.efficiency.model_sizes import sizes_in
from llava.eval.files import read_json, read_rows
from llava.eval.provenance import environment
from scripts.tables import origin

if TYPE_CHECKING:
    from scripts.tables.benchmark_cell import BenchmarkCell


def document(cell: BenchmarkCell, question_file: Path) -> dict[str, Any]:
    """What stands in a cell's file.

    question_file: the one that was asked. `missing` counts the asked questions without an answer. Tokens, GFLOPs and
    times are means over the answers about pictures, `pictured` says how many those are.

    Raises ValueError, one line, when files of the run are missing or damaged.
    """
    merged = cell.answers_folder / "merge.jsonl"
    summary = read_json(merged.with_name("merge.scores.json"))
    answers = read_rows(merged, "answers")
    rows = cell.bench.rows(cell.folder, cell.split)
    asked = len(rows if cell.limit is None else cell.bench.subset(rows, cell.limit))
    settings = origin.recorded_settings(cell)
    marks = origin.data_hash(cell)
    return {
        "benchmark": cell.benchmark,
        "family": cell.family,
        "model": settings["model"],
        "pruner": cell.pruner,
        "method": cell.pruner.partition(":")[0],
        "budget": cell.parsed_pruner.budget if cell.parsed_pruner else None,
        "value": summary["main"],
        "ci95": summary["ci95"],
        "ci95_over": summary["ci95_over"],
        "n": summary["n"],
        "missing": asked - len(answers),
        **{name: summary[name] for name in ("metric", "reported", "paper", "split", "labels", "parts", "judge")},
        "limit": cell.limit,
        **_costs(cell, [row["metadata"] for row in answers]),
        "identity": {**settings, **origin.chosen(cell), "data_hash": marks},
        "data_hash": marks,
        "command": cell.command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **environment(_device(cell)),
        "answers": os.path.relpath(merged, cell.file.parent),
        "scores": os.path.relpath(merged.with_name("merge.scores.json"), cell.file.parent),
    }


def _device(cell: BenchmarkCell) -> torch.device:
    return torch.device("cpu" if launch.share(cell.arguments).devices[0] == "cpu" else "cuda")


def _costs(cell: BenchmarkCell, answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """None where no picture was shown, and GFLOPs where there is no formula for the model."""
    shown = [one for one in answers if one["tokens"]]
    if not shown:
        return {"pictured": 0, **costs_of(shown, None, False)}
    folder = origin.folder_here(cell.model)
    sizes = None if folder is None else sizes_in(folder, cell.answering.model_base)
    inside = cell.parsed_pruner is not None and cell.parsed_pruner.merges_inside
    return {"pictured": len(shown), **costs_of(shown, sizes, inside)}
