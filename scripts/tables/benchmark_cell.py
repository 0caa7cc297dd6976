"""Cells of real benchmarks: one (model, pruner, benchmark) each, made by the documented scripts into one JSON.

    python -m scripts.tables.benchmark_cell --family v1_5 --benchmark pope --model M --pruner flowcut:budget=64

Runs `scripts/<family>/eval/<benchmark>.sh`, which goes on where it was stopped, and puts the score, what the answers
cost and where they come from into `<out>/<model>/<benchmark>/<pruner>.json`. A cell that is there and still true is
not made again. Flags that are not listed go to the script (--split, --devices, --judge-base-url, --dtype, ...).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flowcut import Pruner, parse_pruner
from llava.eval import launch
from llava.eval.answering import program
from llava.eval.benchmarks.contract import Benchmark, Split
from llava.eval.benchmarks.registry import DATA, MODULES, benchmark
from llava.eval.files import absent
from llava.eval.files import write_atomic as write_aside
from llava.eval.prepare import look
from llava.mm_utils import get_model_name_from_path
from scripts.tables import origin
from scripts.tables.cell import Cell
from scripts.tables.cell_document import document
from scripts.tables.follow import follow

SCRIPTS = Path(__file__).parents[1]
# Variables of the scripts that a cell sets itself, or that must not change it behind its back: flags may.
_SETTINGS = ("MODEL", "MODEL_BASE", "PRUNER", "BATCH", "LIMIT", "CONV_MODE", "EVAL_ROOT", "PYTHON", "SPLIT")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchmarkCell:
    """What is measured, and where.

    Attributes:
        family: folder of `scripts/` whose evaluation scripts fit the model: v1_5, v1_6, qwen2_vl, video.
        benchmark: a name of `llava.eval.benchmarks.registry`.
        model: checkpoint folder or Hub name.
        pruner: text form, or "none".
        out: root of results.
        limit: that many questions only, spread evenly; None for all.
        data: folder of all benchmarks.
        flags: further flags for the script.

    Raises ValueError, one line, for names that do not exist and flags that cannot be.
    """

    family: str
    benchmark: str
    model: str
    pruner: str
    out: Path
    limit: int | None = None
    data: Path = DATA
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.benchmark not in MODULES:
            raise ValueError(f"no benchmark {self.benchmark!r}; give one of {', '.join(MODULES)}")
        if not self.script.is_file():
            there = sorted(file.parts[-3] for file in SCRIPTS.glob(f"*/eval/{self.benchmark}.sh"))
            raise ValueError(f"{self.family} has no script for {self.benchmark}; give one of {', '.join(there)}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit} leaves no question; give a number >= 1, or none for all")
        parse_pruner(self.pruner)
        given = (self.arguments.model_path, self.arguments.pruner, self.arguments.limit, self.arguments.data)
        if given != (self.model, self.pruner, self.limit, self.data):
            raise ValueError(f"flags {shlex.join(self.flags)} name model, pruner, limit or data; give them to the cell")
        self.bench.split(self.arguments.split)
        launch.share(self.arguments)
        assert self.answering  # parsed now, so that a wrong flag shows before anything runs

    @property
    def script(self) -> Path:
        return SCRIPTS / self.family / "eval" / f"{self.benchmark}.sh"

    @cached_property
    def bench(self) -> Benchmark:
        return benchmark(self.benchmark)

    @cached_property
    def _parsed(self) -> tuple[argparse.Namespace, list[str]]:
        parser = launch.build_parser()
        parser.exit_on_error = False
        given = [self.benchmark, "--data", str(self.data), "--model-path", self.model, "--pruner", self.pruner]
        given += ["--limit", str(self.limit)] if self.limit else []
        try:
            return parser.parse_known_args([*given, *self.flags])
        except argparse.ArgumentError as error:
            raise ValueError(f"flags {shlex.join(self.flags)}: {error}") from error

    @property
    def arguments(self) -> argparse.Namespace:
        """What `llava.eval.launch` is told, beside the scripts' own settings."""
        return self._parsed[0]

    @cached_property
    def answering(self) -> argparse.Namespace:
        """What the answering program is told, as far as flags say it."""
        parser = program.build_parser(None, "", "", self.bench.max_new_tokens)
        parser.exit_on_error = False
        given = ["--model-path", self.model, "--question-file", "", "--temperature", self.arguments.temperature]
        try:
            return parser.parse_known_args([*given, *self._parsed[1]])[0]
        except argparse.ArgumentError as error:
            raise ValueError(f"flags {shlex.join(self.flags)}: {error}") from error

    @property
    def split(self) -> Split:
        return self.bench.split(self.arguments.split)

    @property
    def folder(self) -> Path:
        """The benchmark's, with annotations and pictures."""
        return self.bench.folder(self.data, self.split)

    @property
    def question_file(self) -> Path:
        """That of the whole split."""
        return self.folder / self.split.question_file

    @property
    def answers_folder(self) -> Path:
        return launch.answers_folder(self.question_file.parent, self.split.name, self.arguments)

    @property
    def name(self) -> str:
        """Of the cell's file: flowcut_64; _<split> behind it where it is not the published one, and _limit_N."""
        split = "" if self.split == self.bench.split() else f"_{self.split.name}"
        return Cell(self.benchmark, self.pruner).name + split + (f"_limit_{self.limit}" if self.limit else "")

    @property
    def file(self) -> Path:
        return self.out / get_model_name_from_path(self.model) / self.benchmark / f"{self.name}.json"

    @property
    def parsed_pruner(self) -> Pruner | None:
        return parse_pruner(self.pruner)

    @property
    def environment(self) -> dict[str, str]:
        """The script's settings."""
        settings = {"MODEL": self.model, "PRUNER": self.pruner, "LIMIT": str(self.limit or "")}
        return {**settings, "EVAL_ROOT": str(self.data), "PYTHON": sys.executable}

    @property
    def command(self) -> str:
        """What does the same in a shell."""
        settings = {name: value for name, value in self.environment.items() if name != "PYTHON" and value}
        told = [f"{name}={shlex.quote(value)}" for name, value in settings.items()]
        script = self.script.relative_to(SCRIPTS.parent).as_posix()
        return " ".join([*told, "bash", script, *map(shlex.quote, self.flags)])

    def read(self) -> dict[str, Any] | None:
        """The cell's JSON if it is there and still true, else None. Loads no model and starts no process.

        True means: same pruner, split, limit, flags that decide about answers, questions, annotations and weights, and
        no question unanswered. What is not on this machine (data, weights of a Hub name) contradicts nothing.
        """
        if not self.file.is_file():
            return None
        try:
            there = json.loads(self.file.read_text("utf-8"))
        except json.JSONDecodeError:
            return None  # edited by hand; it follows from the answers and is made anew
        wanted = origin.expected(self)
        differs = any(there["identity"].get(name) != value for name, value in wanted.items())
        unjudged = "judge" in wanted and there["value"] is None
        return None if differs or unjudged or there["missing"] > 0 else there

    def missing_files(self) -> list[str]:
        """What the benchmark lacks and where to get it, a line each; pictures of questions included."""
        lacking = self.bench.missing(self.folder, self.split)
        if lacking:
            return [f"{' or '.join(one.paths)} ({one.purpose}), get it from {one.source}" for one in lacking]
        found = look(self.bench, self.folder, self.split)
        gone = found.absent
        if gone and self.limit:
            gone = absent(self.bench.subset(self.bench.rows(self.folder, self.split), self.limit), found.images)
        if not gone or self.arguments.skip_bad:
            return []
        return [f"{len(gone)} pictures of questions in {found.images}, such as {gone[0]}"]

    def make(self) -> dict[str, Any]:
        """The cell's JSON: read, or made by running the script for what is missing.

        The script's messages go to stderr. Answers that were made otherwise than this cell asks for are put aside,
        into a folder beside them.

        Raises ValueError, one line, when files are missing or the script fails; answers up to there are kept.
        """
        there = self.read()
        if there is not None:
            return there
        if lacking := self.missing_files():
            raise ValueError(f"{self.folder} lacks {'; '.join(lacking)}")
        asked = self.bench.prepare(self.folder, self.split, self.limit)
        aside = origin.put_aside(self, asked.question_file)
        if aside is not None:
            logger.warning("answers made with another model, pruner or setting were put aside: %s", aside)
        self._run()
        made = document(self, asked.question_file)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_aside(self.file, json.dumps(made, ensure_ascii=False, indent=1) + "\n")
        return made

    def _run(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in _SETTINGS} | self.environment
        ended = follow(["bash", str(self.script), *self.flags], environment)
        if ended.status:
            raise ValueError(f"{self.command} ended with {ended.status}: {ended.reason}; started again it goes on")
        if "waiting_for" in ended.document:
            raise ValueError(f"{self.command}: {ended.document['waiting_for']} still answer; start it again after them")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--family", default="v1_5", help="folder of scripts: v1_5, v1_6, qwen2_vl, video")
    parser.add_argument("--benchmark", required=True, choices=MODULES)
    parser.add_argument("--model", required=True, help="checkpoint folder, or Hub name")
    parser.add_argument("--pruner", default="none", help="none, flowcut:budget=64, ... (default: none)")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder of all benchmarks (default: {DATA})")
    parser.add_argument("--limit", type=int, help="ask this many questions only, spread evenly")
    args, flags = parser.parse_known_args(argv)
    try:
        cell = BenchmarkCell(
            args.family, args.benchmark, args.model, args.pruner, args.out, args.limit, args.data, tuple(flags)
        )
        made = cell.make()
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(json.dumps({"file": str(cell.file), **made}, ensure_ascii=False))


if __name__ == "__main__":
    main()
