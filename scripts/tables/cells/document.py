"""The JSON of a benchmark's cell: composed from the files of an evaluation, or read while it is up to date."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch

from llava.eval.efficiency.answer_costs import costs_of
from llava.eval.efficiency.model_sizes import sizes_in
from llava.eval.files import read_json, read_rows
from llava.eval.provenance import environment
from llava.model.checkpoint import folder_here
from scripts.tables.cells import identity
from scripts.tables.cells.file_names import method_of
from scripts.tables.cells.spec import CellSpec


def make_document(spec: CellSpec) -> dict[str, Any]:
    """What stands in a cell's file, from the answers and scores of its evaluation.

    `missing` counts the asked questions without an answer. Tokens, GFLOPs and times (ms) are means over the answers
    about pictures; `pictured` says how many those are.

    Raises:
        ValueError: files of the evaluation are missing or damaged; the message is one line.
    """
    evaluation = spec.evaluation
    merged, scores = evaluation.answers_file, evaluation.answers_file.with_suffix(".scores.json")
    summary = read_json(scores)
    if "ci95_over" not in summary:
        raise ValueError(f"{scores} has no interval; run llava.eval.score again")
    answers = read_rows(merged, "answers")
    rows = evaluation.bench.rows(evaluation.folder, evaluation.chosen_split)
    asked = len(rows if spec.limit is None else evaluation.bench.subset(rows, spec.limit))
    settings = identity.recorded_settings(spec)
    marks = identity.data_hash(spec)
    return {
        "benchmark": spec.benchmark,
        "family": spec.family,
        "model": settings["model"],
        "pruner": spec.pruner,
        "method": method_of(spec.pruner),
        "budget": spec.parsed_pruner.budget if spec.parsed_pruner else None,
        "value": summary["main"],
        "ci95": summary["ci95"],
        "ci95_over": summary["ci95_over"],
        "n": summary["n"],
        "missing": asked - len(answers),
        **{name: summary[name] for name in ("metric", "reported", "paper", "split", "labels", "parts", "judge")},
        "limit": spec.limit,
        **_costs(spec, [row["metadata"] for row in answers]),
        "identity": {**settings, **identity.chosen(spec), "data_hash": marks},
        "data_hash": marks,
        "command": spec.command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **environment(_device(spec)),
        "answers": os.path.relpath(merged, spec.file.parent),
        "scores": os.path.relpath(scores, spec.file.parent),
    }


def read_document(spec: CellSpec) -> dict[str, Any] | None:
    """The JSON in a cell's file if it is up to date, else None. Loads no model and starts no process.

    Up to date means that no question is unanswered, and that pruner, split, limit, flags that decide about answers,
    questions, annotations and weights are the same. What is not on this machine (data, weights of a Hub name)
    contradicts nothing.
    """
    if not spec.file.is_file():
        return None
    try:
        there = json.loads(spec.file.read_text("utf-8"))
    except json.JSONDecodeError:
        return None  # edited by hand; it follows from the answers and is made anew
    wanted = identity.expected(spec)
    differs = any(there["identity"].get(name) != value for name, value in wanted.items())
    unjudged = "judge" in wanted and there["value"] is None
    return None if differs or unjudged or there["missing"] > 0 else there


def _device(spec: CellSpec) -> torch.device:
    return torch.device("cpu" if spec.evaluation.share.devices[0] == "cpu" else "cuda")


def _costs(spec: CellSpec, answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Costs of the answers about pictures, and how many these are; GFLOPs are None where the model has no formula."""
    pictured = [one for one in answers if one["tokens"]]
    folder = folder_here(spec.model) if pictured else None
    sizes = None if folder is None else sizes_in(folder, spec.evaluation.answering.model_base)
    merges = spec.parsed_pruner is not None and spec.parsed_pruner.merges_before_mlp
    return {"pictured": len(pictured), **costs_of(pictured, sizes, merges)}
