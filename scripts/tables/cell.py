"""Cells: one (model, pruner, budget, benchmark) each, measured into one JSON that knows where it came from.

    python -m scripts.tables.cell --model playground/embedded --pruner none --pruner flowcut:budget=64

`<out>/<benchmark>/<pruner>.json` holds the numbers, `<out>/<benchmark>/answers/` every answer. A cell that is there and
was made from the same model, data and settings is not made again; one that was interrupted is continued. Cells made
together take turns question by question, so that whatever else the machine does falls on all of them alike.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flowcut import parse_pruner
from llava.eval.answering.answer_run import AnswerRun as Run
from llava.eval.answering.journal import Journal
from llava.eval.benchmarks import embedded
from llava.eval.benchmarks.join import join, read_answers
from llava.eval.benchmarks.tally import by_part
from llava.eval.efficiency.answer_costs import ModelSizes, costs_of
from llava.eval.files import write_atomic as write_aside
from llava.eval.metrics.bootstrap import mean_with_interval
from llava.eval.models.llava_answerer import LlavaAnswerer as Answerer
from llava.eval.models.llava_checkpoint import Checkpoint, load_checkpoint
from llava.eval.models.reply import DTYPES, Generation
from llava.eval.provenance import environment, fingerprint
from llava.eval.questions import Problem, Question, read_questions, subset
from llava.eval.sample import Score

BENCHMARKS = {"embedded": embedded}


@dataclass(frozen=True)
class Cell:
    """What is measured: a pruner (as text) on a benchmark; `blind` asks about other pictures than the right ones."""

    benchmark: str
    pruner: str = "none"
    blind: bool = False

    @property
    def method(self) -> str:
        return self.pruner.partition(":")[0]

    @property
    def name(self) -> str:
        """For files: blind, none, flowcut_64, pdrop_192_layers=1-2-3."""
        if self.blind:
            return "blind"
        settings = [
            part.strip().removeprefix("budget=") for part in self.pruner.split(":")[1:] for part in part.split(",")
        ]
        return "_".join([self.method, *settings]).replace("/", "-")


@dataclass(frozen=True)
class Bench:
    """Where and how cells are made. limit: that many questions, spread evenly; None for all."""

    checkpoint: Checkpoint
    data: Path
    out: Path
    limit: int | None = None
    batch_size: int = 1
    fresh: bool = False
    command: str = ""


class Plan:
    """A cell on its way: its files, and whether what lies there is still true.

    `run` answers what is missing; None when the cell's JSON is there and up to date, for these questions or for more.

    Raises ValueError for missing files and pruners that do not fit.
    """

    def __init__(self, bench: Bench, cell: Cell) -> None:
        self.bench, self.cell = bench, cell
        self.benchmark = BENCHMARKS[cell.benchmark]
        self.question_file = bench.data / (self.benchmark.BLIND if cell.blind else self.benchmark.QUESTIONS)
        self.truth_file = bench.data / self.benchmark.TRUTH
        self.images = bench.data / self.benchmark.IMAGES
        self.rows, self.problems = read_questions(self.question_file)
        self.questions: list[Question] = subset(self.rows, bench.limit)
        generation = Generation(max_new_tokens=self.benchmark.MAX_NEW_TOKENS)
        self.answerer = Answerer(bench.checkpoint, cell.pruner, generation)
        self.identity = self._identity(self.questions)
        folder = bench.out / cell.benchmark
        self.file = folder / f"{cell.name}.json"
        self.answers = folder / "answers" / f"{cell.name}.jsonl"
        self.run = self._start() if bench.fresh or self._stale() else None

    def _identity(self, questions: Sequence[Question]) -> dict[str, Any]:
        """What decides about the answers to these questions."""
        named = sorted({self.images / str(name) for question in questions for name in question.images})
        pictures = [picture for picture in named if picture.is_file()]
        return {
            **self.answerer.settings(),
            "benchmark": self.cell.benchmark,
            "blind": self.cell.blind,
            "data_hash": fingerprint([self.question_file, self.truth_file, *pictures]),
            "questions": len(questions),
            "batch_size": self.bench.batch_size,
            "device": self.bench.checkpoint.model.device.type,
        }

    def _stale(self) -> bool:
        if not self.file.is_file():
            return True
        there = json.loads(self.file.read_text("utf-8"))
        asked = subset(self.rows, there["limit"])
        return (
            not {one.question_id for one in self.questions} <= {one.question_id for one in asked}
            or there["identity"] != self._identity(asked)
            or there["missing"] > 0
        )

    def _start(self) -> Run:
        fresh = self.bench.fresh or not Journal.fits(self.answers, self.identity)
        journal = Journal(self.answers, self.identity, fresh)
        return Run(self.answerer, self.questions, self.images, journal, self.bench.batch_size, self.problems)

    def result(self) -> dict[str, Any]:
        """The cell's JSON: read, or computed from the answers and written."""
        if self.run is None:
            return json.loads(self.file.read_text("utf-8"))
        rows = [json.loads(line) for line in self.answers.read_text("utf-8").split("\n") if line]
        asked = {question.question_id for question in self.questions}
        benchmark = self.benchmark.BENCHMARK
        samples = [one for one in benchmark.load(self.bench.data, benchmark.split(), []) if one.question_id in asked]
        joined = join(samples, read_answers(self.answers), benchmark.answer_key)
        scores = [one for one in map(benchmark.score, joined.samples) if one.value is not None]
        tower = self.bench.checkpoint.model.get_vision_tower()
        pruner = self.answerer.pruner
        inside = pruner is not None and pruner.merges_inside
        result = {
            "benchmark": self.cell.benchmark,
            "model": self.bench.checkpoint.name,
            "pruner": self.cell.pruner,
            "method": self.cell.method,
            "budget": pruner.budget if pruner else tower.num_patches,
            "blind": self.cell.blind,
            **_accuracy(scores),
            "categories": {name: _accuracy(own) for name, own in by_part(scores, "category").items()},
            "missing": len(samples) - len(rows) + len(self.problems),
            **costs_of([row["metadata"] for row in rows], ModelSizes.of(self.bench.checkpoint.model), inside),
            "identity": self.identity,
            "attention": self.bench.checkpoint.model.config._attn_implementation,
            "limit": self.bench.limit,
            "command": self.bench.command,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            **environment(self.bench.checkpoint.model.device),
            "answers": str(self.answers.relative_to(self.file.parent)),
            # enough to compare two cells question by question without their answers files
            "questions": " ".join(str(one.question_id) for one in scores),
            "scenes": " ".join(str(one.parts["scene"]) for one in scores),
            "types": " ".join(str(one.parts["category"]) for one in scores),
            "scores": " ".join(f"{one.value:g}" for one in scores),
        }
        write_aside(self.file, json.dumps(result, indent=1) + "\n")
        return result


def measure(plans: Sequence[Plan]) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Make the cells that are missing or stale. Returns all cells' results in order, and what could not be answered."""
    runs = [plan.run for plan in plans if plan.run]
    for run in runs:
        run.warm_up()
    total = sum(len(run.questions) for run in runs)
    waiting = sum(run.remaining for run in runs)
    with tqdm(total=total, initial=total - waiting, desc="questions, all rows", unit="q", disable=not total) as bar:
        while any(run.remaining for run in runs):
            bar.update(sum(run.step() for run in runs if run.remaining))
    problems = [problem for run in runs for problem in run.finish()]
    return [plan.result() for plan in plans], list(dict.fromkeys(problems))


def _accuracy(scores: Sequence[Score]) -> dict[str, Any]:
    """Share of right answers with its 95 % interval, bootstrapped over scenes; None over nothing."""
    known = [(one.value, one.parts["scene"]) for one in scores if one.value is not None]
    mean = mean_with_interval([value for value, _ in known], [scene for _, scene in known])
    value, low, high = (None, None, None) if mean is None else (round(number, 4) for number in mean)
    return {"n": len(known), "accuracy": value, "ci95": None if mean is None else [low, high]}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="playground/embedded", help="checkpoint folder, or Hub name")
    parser.add_argument("--benchmark", choices=BENCHMARKS, default="embedded")
    parser.add_argument("--data", type=Path, default=Path("playground/data/embedded"), help="the benchmark's folder")
    parser.add_argument("--pruner", action="append", help="none, flowcut:budget=64, ...; may be given several times")
    parser.add_argument("--blind", action="store_true", help="also measure what the model knows without the picture")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--limit", type=int, help="ask this many questions only, spread evenly")
    parser.add_argument("--batch-size", type=int, default=1, help="1 is what times are comparable at")
    parser.add_argument("--device")
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--conv-mode")
    parser.add_argument("--fresh", action="store_true", help="make the cells again")
    args = parser.parse_args(argv)
    command = "python -m scripts.tables.cell " + shlex.join(sys.argv[1:] if argv is None else argv)
    cells = [Cell(args.benchmark, pruner) for pruner in args.pruner or ["none"]]
    if args.blind:
        cells.insert(0, Cell(args.benchmark, blind=True))
    try:
        for cell in cells:
            parse_pruner(cell.pruner)
        checkpoint = load_checkpoint(args.model, None, args.conv_mode, args.device, args.dtype, "vicuna_v1")
        bench = Bench(checkpoint, args.data, args.out, args.limit, args.batch_size, args.fresh, command)
        plans = [Plan(bench, cell) for cell in cells]
    except ValueError as error:
        sys.exit(f"error: {error}")
    results, problems = measure(plans)
    for problem in problems:
        print(f"not answered: {problem.where}: {problem.what}", file=sys.stderr)
    shown = ("pruner", "budget", "blind", "n", "missing", "accuracy", "ci95", "gflops", "ms")
    print(json.dumps([{key: result[key] for key in shown} for result in results]))
    if problems:
        sys.exit(1)


if __name__ == "__main__":
    main()
