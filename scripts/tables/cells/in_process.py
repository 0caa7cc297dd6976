"""Cells whose questions are answered in this process, several cells in turn.

Cells that are made together take turns question by question, so that whatever else the machine does affects all of
them alike.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flowcut.cli.progress import progress_bar
from llava.eval.answering.answer_run import AnswerRun
from llava.eval.answering.journal import Journal
from llava.eval.benchmarks import embedded
from llava.eval.benchmarks.contract import Score
from llava.eval.benchmarks.join import join, read_answers
from llava.eval.benchmarks.tally import by_part
from llava.eval.efficiency.answer_costs import ModelSizes, costs_of
from llava.eval.files import write_atomic
from llava.eval.metrics.bootstrap import mean_with_interval
from llava.eval.models.llava_answerer import LlavaAnswerer
from llava.eval.models.llava_checkpoint import Checkpoint
from llava.eval.models.reply import Generation
from llava.eval.provenance import environment, fingerprint
from llava.eval.questions import Problem, Question, read_questions, subset
from llava.given import read_json
from scripts.tables.cells.file_names import cell_name, method_of

BENCHMARKS = {"embedded": embedded}


@dataclass(frozen=True)
class Cell:
    """What is measured: a pruner (as text) on a benchmark; `blind` asks about other pictures than the right ones."""

    benchmark: str
    pruner: str = "none"
    blind: bool = False

    @property
    def method(self) -> str:
        return method_of(self.pruner)

    @property
    def name(self) -> str:
        """For files: blind, none, flowcut_64, pdrop_192_layers=1-2-3."""
        return "blind" if self.blind else cell_name(self.pruner)


@dataclass(frozen=True)
class Setup:
    """Where and how cells are made.

    Attributes:
        checkpoint: the loaded model.
        data: the benchmark's folder.
        out: root of results.
        limit: number of questions, spread evenly over the benchmark; None for all.
        batch_size: questions at a time; times are comparable at 1.
        fresh: whether cells that are up to date are made again.
        command: what the user called, for the cell's JSON.
    """

    checkpoint: Checkpoint
    data: Path
    out: Path
    limit: int | None = None
    batch_size: int = 1
    fresh: bool = False
    command: str = ""


class Plan:
    """How a cell is made: its files, and the run that answers what is missing.

    Attributes:
        run: None when the cell's JSON is up to date, for these questions or for more.

    Raises:
        ValueError: files are missing, or the pruner does not fit the model.
    """

    def __init__(self, setup: Setup, cell: Cell) -> None:
        self.setup, self.cell = setup, cell
        self.benchmark = BENCHMARKS[cell.benchmark]
        self.question_file = setup.data / (self.benchmark.BLIND if cell.blind else self.benchmark.QUESTIONS)
        self.truth_file = setup.data / self.benchmark.TRUTH
        self.images = setup.data / self.benchmark.IMAGES
        self.rows, self.problems = read_questions(self.question_file)
        self.questions: list[Question] = subset(self.rows, setup.limit)
        generation = Generation(max_new_tokens=self.benchmark.MAX_NEW_TOKENS)
        self.answerer = LlavaAnswerer(setup.checkpoint, cell.pruner, generation)
        self.identity = self._identity(self.questions)
        folder = setup.out / cell.benchmark
        self.file = folder / f"{cell.name}.json"
        self.answers = folder / "answers" / f"{cell.name}.jsonl"
        self.run = self._start() if setup.fresh or self._stale() else None

    def _identity(self, questions: Sequence[Question]) -> dict[str, Any]:
        """What the answers to these questions follow from."""
        named = sorted({self.images / str(name) for question in questions for name in question.images})
        pictures = [picture for picture in named if picture.is_file()]
        return {
            **self.answerer.settings(),
            "benchmark": self.cell.benchmark,
            "blind": self.cell.blind,
            "data_hash": fingerprint([self.question_file, self.truth_file, *pictures]),
            "questions": len(questions),
            "batch_size": self.setup.batch_size,
            "device": self.setup.checkpoint.model.device.type,
        }

    def _stale(self) -> bool:
        if not self.file.is_file():
            return True
        there = self._recorded()
        asked = subset(self.rows, there["limit"])
        return (
            not {one.question_id for one in self.questions} <= {one.question_id for one in asked}
            or there["identity"] != self._identity(asked)
            or there["missing"] > 0
        )

    def _recorded(self) -> dict[str, Any]:
        """The cell that is there, up to date or not; empty for none."""
        return read_json(self.file) if self.file.is_file() else {}

    @property
    def expected_ms(self) -> float | None:
        """What a question took when the cell was measured before."""
        return self._recorded().get("ms", {}).get("mean")

    def _same_origin(self, there: dict[str, Any]) -> bool:
        """Whether a recorded cell is of this model and these data; one of others is of no use here."""
        now = self.origin(there["limit"])
        return all(there["identity"].get(name) == now[name] for name in now)

    def origin(self, limit: int | None) -> dict[str, Any]:
        """Hashes of the weights, and of the data that a cell with this limit is about."""
        now = self._identity(subset(self.rows, limit))
        return {name: now[name] for name in ("model_hash", "data_hash")}

    def _start(self) -> AnswerRun:
        there = self._recorded()
        if there.get("n", 0) > len(self.questions) and self._same_origin(there):
            raise ValueError(
                f"{self.file} holds {there['n']} questions, which {len(self.questions)} would replace; ask as many, or "
                f"give another folder for the results"
            )
        fresh = self.setup.fresh or not Journal.fits(self.answers, self.identity)
        journal = Journal(self.answers, self.identity, fresh)
        return AnswerRun(self.answerer, self.questions, self.images, journal, self.setup.batch_size, self.problems)

    def result(self) -> dict[str, Any]:
        """The cell's JSON: read, or computed from the answers and written."""
        if self.run is None:
            return json.loads(self.file.read_text("utf-8"))
        rows = [json.loads(line) for line in self.answers.read_text("utf-8").split("\n") if line]
        asked = {question.question_id for question in self.questions}
        benchmark = self.benchmark.BENCHMARK
        samples = [one for one in benchmark.load(self.setup.data, benchmark.split(), []) if one.question_id in asked]
        joined = join(samples, read_answers(self.answers), benchmark.answer_key)
        scores = [one for one in map(benchmark.score, joined.samples) if one.value is not None]
        tower = self.setup.checkpoint.model.get_vision_tower()
        pruner = self.answerer.pruner
        merges = pruner is not None and pruner.merges_before_mlp
        result = {
            "benchmark": self.cell.benchmark,
            "model": self.setup.checkpoint.name,
            "pruner": self.cell.pruner,
            "method": self.cell.method,
            "budget": pruner.budget if pruner else tower.num_patches,
            "blind": self.cell.blind,
            **_accuracy(scores),
            "categories": {name: _accuracy(own) for name, own in by_part(scores, "category").items()},
            "missing": len(samples) - len(rows) + len(self.problems),
            **costs_of([row["metadata"] for row in rows], ModelSizes.of(self.setup.checkpoint.model), merges),
            "identity": self.identity,
            "attention": self.setup.checkpoint.model.config._attn_implementation,
            "limit": self.setup.limit,
            "command": self.setup.command,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            **environment(self.setup.checkpoint.model.device),
            "answers": str(self.answers.relative_to(self.file.parent)),
            # enough to compare two cells question by question without their answers files
            "questions": " ".join(str(one.question_id) for one in scores),
            "scenes": " ".join(str(one.parts["scene"]) for one in scores),
            "types": " ".join(str(one.parts["category"]) for one in scores),
            "scores": " ".join(f"{one.value:g}" for one in scores),
        }
        write_atomic(self.file, json.dumps(result, indent=1) + "\n")
        return result


def measure(plans: Sequence[Plan]) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Make the cells that are missing or stale.

    Returns all cells' results in the order of the plans, and what could not be answered.
    """
    runs = [plan.run for plan in plans if plan.run]
    if runs:
        print(plan_of(plans), file=sys.stderr)
    for run in runs:
        run.warm_up()
    total = sum(len(run.questions) for run in runs)
    waiting = sum(run.remaining for run in runs)
    with progress_bar(
        total=total, initial=total - waiting, desc="questions, all rows", unit="q", disable=not total
    ) as bar:
        while any(run.remaining for run in runs):
            bar.update(sum(run.step() for run in runs if run.remaining))
    problems = [problem for run in runs for problem in run.finish()]
    return [plan.result() for plan in plans], list(dict.fromkeys(problems))


def plan_of(plans: Sequence[Plan]) -> str:
    """What will be measured, and about how long it takes where cells were measured before, in one line."""
    todo = [plan for plan in plans if plan.run]
    answers = sum(plan.run.remaining for plan in todo if plan.run)
    known = [plan.expected_ms for plan in plans if plan.expected_ms is not None]
    minutes = f", about {answers * sum(known) / len(known) / 60_000:.0f} minutes" if known else ""
    names = ", ".join(plan.cell.name for plan in todo)
    return f"{len(todo)} of {len(plans)} cells are measured, {answers} answers{minutes}: {names}"


def report(problems: Iterable[Problem]) -> None:
    """Say on stderr what could not be answered, a line each."""
    for problem in problems:
        print(f"not answered: {problem.where}: {problem.what}", file=sys.stderr)


def _accuracy(scores: Sequence[Score]) -> dict[str, Any]:
    """Share of right answers, 0 to 1, with its 95 % interval bootstrapped over scenes; None over nothing."""
    known = [(one.value, one.parts["scene"]) for one in scores if one.value is not None]
    mean = mean_with_interval([value for value, _ in known], [scene for _, scene in known])
    value, low, high = (None, None, None) if mean is None else (round(number, 4) for number in mean)
    return {"n": len(known), "accuracy": value, "ci95": None if mean is None else [low, high]}
