"""The specification of a benchmark's cell: what is measured, with which flags, and where its files lie.

A specification is parsed and checked once, when it is made. Whoever runs, reads or describes the cell reads it here.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from flowcut import Pruner, parse_pruner
from llava.eval import launch
from llava.eval.answering import program
from llava.eval.benchmarks.contract import Benchmark, Split
from llava.eval.benchmarks.registry import MODULES, benchmark
from llava.eval.judge import settings as judge_settings
from llava.eval.prepare import DATA
from llava.mm_utils import get_model_name_from_path
from scripts.tables.cells.file_names import cell_name

SCRIPTS = Path(__file__).parents[2]
FAMILIES: dict[str, str | None] = {"v1_5": "vicuna_v1", "v1_6": "vicuna_v1", "qwen2_vl": None, "video": None}
"""Folder of `scripts/` with evaluation scripts -> their conversation mode; None for the checkpoint's own."""


@dataclass(frozen=True)
class CellSpec:
    """One (model, pruner, benchmark), and how it is evaluated.

    Attributes:
        family: folder of `scripts/` whose evaluation scripts fit the model, a key of `FAMILIES`.
        benchmark: a name of `llava.eval.benchmarks.registry`.
        model: checkpoint folder or Hub name.
        pruner: text form, or "none".
        out: root of results.
        limit: number of questions, spread evenly over the benchmark; None for all.
        data: folder of all benchmarks.
        flags: further flags of `python -m llava.eval.launch`.
        launching: what the launcher is told; parsed from the other fields.
        answering: what the answering program is told; parsed from the other fields.

    Raises:
        ValueError: a name does not exist, or a flag is wrong; the message is one line.
    """

    family: str
    benchmark: str
    model: str
    pruner: str
    out: Path
    limit: int | None = None
    data: Path = DATA
    flags: tuple[str, ...] = ()
    launching: argparse.Namespace = field(init=False, repr=False, compare=False)
    answering: argparse.Namespace = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.benchmark not in MODULES:
            raise ValueError(f"no benchmark {self.benchmark!r}; give one of {', '.join(MODULES)}")
        if not self.script.is_file():
            there = sorted(file.parts[-3] for file in SCRIPTS.glob(f"*/eval/{self.benchmark}.sh"))
            raise ValueError(f"{self.family} has no script for {self.benchmark}; give one of {', '.join(there)}")
        if self.family not in FAMILIES:
            raise ValueError(f"no family {self.family!r}; give one of {', '.join(FAMILIES)}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit} leaves no question; give a number >= 1, or none for all")
        parse_pruner(self.pruner)
        launching, passed_on = self._parse(launch.build_parser(), self.launch_arguments)
        given = (launching.model_path, launching.pruner, launching.limit, launching.data)
        if given != (self.model, self.pruner, self.limit, self.data):
            raise ValueError(f"flags {shlex.join(self.flags)} name model, pruner, limit or data; give them to the cell")
        told = ["--model-path", self.model, "--question-file", "", "--temperature", launching.temperature, *passed_on]
        answering, _ = self._parse(program.build_parser(None, "", "", self.bench.max_new_tokens), told)
        object.__setattr__(self, "launching", launching)
        object.__setattr__(self, "answering", answering)
        self.bench.split(launching.split)
        launch.share(launching)

    def _parse(self, parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        parser.exit_on_error = False
        try:
            return parser.parse_known_args(arguments)
        except argparse.ArgumentError as error:
            raise ValueError(f"flags {shlex.join(self.flags)}: {error}") from error

    @property
    def launch_arguments(self) -> list[str]:
        """The command line of `python -m llava.eval.launch`: what the script gives it, and the flags.

        The embedded benchmark leaves the conversation mode to the checkpoint, in every family.
        """
        mode = None if self.benchmark == "embedded" else FAMILIES[self.family]
        return [
            *(self.benchmark, "--data", str(self.data), "--model-path", self.model, "--batch-size", "1"),
            *("--pruner", self.pruner),
            *(["--limit", str(self.limit)] if self.limit else []),
            *(["--conv-mode", mode] if mode else []),
            *self.flags,
        ]

    @property
    def script(self) -> Path:
        return SCRIPTS / self.family / "eval" / f"{self.benchmark}.sh"

    @property
    def command(self) -> str:
        """What does the same in a shell."""
        settings = {"MODEL": self.model, "PRUNER": self.pruner, "LIMIT": str(self.limit or "")}
        settings["EVAL_ROOT"] = str(self.data)
        told = [f"{name}={shlex.quote(value)}" for name, value in settings.items() if value]
        script = self.script.relative_to(SCRIPTS.parent).as_posix()
        return " ".join([*told, "bash", script, *map(shlex.quote, self.flags)])

    @cached_property
    def bench(self) -> Benchmark:
        return benchmark(self.benchmark)

    @property
    def split(self) -> Split:
        return self.bench.split(self.launching.split)

    @property
    def share(self) -> launch.Share:
        """The devices of this machine, and the chunks of questions that they answer."""
        return launch.share(self.launching)

    @property
    def judge(self) -> judge_settings.JudgeSettings:
        return judge_settings.settings_of(self.launching)

    @property
    def parsed_pruner(self) -> Pruner | None:
        return parse_pruner(self.pruner)

    @property
    def folder(self) -> Path:
        """The benchmark's folder, with annotations and pictures."""
        return self.bench.folder(self.data, self.split)

    @property
    def question_file(self) -> Path:
        """The question file of the whole split."""
        return self.folder / self.split.question_file

    @property
    def answers_folder(self) -> Path:
        return launch.answers_folder(self.question_file.parent, self.split.name, self.launching)

    @property
    def name(self) -> str:
        """Name of the cell's file: flowcut_64, with _<split> where it is not the published one, and _limit_N."""
        split = "" if self.split == self.bench.split() else f"_{self.split.name}"
        return cell_name(self.pruner) + split + (f"_limit_{self.limit}" if self.limit else "")

    @property
    def file(self) -> Path:
        return self.out / get_model_name_from_path(self.model) / self.benchmark / f"{self.name}.json"
