"""Evaluates a model with a pruner on a benchmark, from the question file to the score: a specification and a
function.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from flowcut.registry import parse_pruner
from llava.eval.answering.chunks import MERGED, Share, answer_chunks, merge, share_of
from llava.eval.answering.settings import AnswerSettings
from llava.eval.benchmarks.contract import PROGRAMS, Benchmark, Prepared, Split
from llava.eval.benchmarks.registry import DATA, benchmark
from llava.eval.benchmarks.scoring import Scored, score_answers
from llava.eval.judge.settings import JudgeSettings
from llava.mm_utils import get_model_name_from_path

# The values in LLaVA's scripts.
PROGRAM_FLAGS = {"science": ("--single-pred-prompt",), "mmbench": ("--single-pred-prompt",)}
BENCHMARK_FLAGS = {"mmbench_cn": ("--lang", "cn")}


@dataclass(frozen=True)
class EvaluationSpec:
    """What is evaluated, and how. Creating one loads no model and reads no file.

    Attributes:
        benchmark: a name of `llava.eval.benchmarks.registry`.
        model: checkpoint folder or Hub name.
        pruner: text such as "flowcut:budget=64", or "none"; None uses the checkpoint's own, if it has one.
        split: None for the one of the published number.
        limit: number of questions, spread evenly; None for all.
        data: folder of all benchmarks.
        answering: how the model is loaded and answers.
        devices: such as "0,1" or "cpu"; None uses CUDA_VISIBLE_DEVICES, else all GPUs, else the CPU.
        nodes, node: number of machines that share the work, and this machine's index, from 0.
        skip_bad: score although some questions could not be answered.
        judge: the judge, for benchmarks that need one.

    Raises ValueError, one line, for unknown names and invalid numbers.
    """

    benchmark: str
    model: str
    pruner: str | None = None
    split: str | None = None
    limit: int | None = None
    data: Path = DATA
    answering: AnswerSettings = field(default_factory=AnswerSettings)
    devices: str | None = None
    nodes: int = 1
    node: int = 0
    skip_bad: bool = False
    judge: JudgeSettings = field(default_factory=JudgeSettings)

    def __post_init__(self) -> None:
        if self.pruner is not None:
            parse_pruner(self.pruner)
        elif self.answering.server is not None:
            raise ValueError("a server does not report its pruner; give --pruner, such as flowcut:budget=64, or none")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit} leaves no question; give a number >= 1, or none for all")
        share_of(self.devices, self.nodes, self.node)
        benchmark(self.benchmark).split(self.split)

    @cached_property
    def bench(self) -> Benchmark:
        return benchmark(self.benchmark)

    @cached_property
    def chosen_split(self) -> Split:
        return self.bench.split(self.split)

    @property
    def share(self) -> Share:
        """This node's devices and chunks; one chunk where a server answers, whose devices are not here."""
        devices = "cpu" if self.devices is None and self.answering.server is not None else self.devices
        return share_of(devices, self.nodes, self.node)

    @property
    def folder(self) -> Path:
        """The benchmark's, with annotations and pictures."""
        return self.bench.folder(self.data, self.chosen_split)

    @property
    def question_file(self) -> Path:
        """That of the whole split."""
        return self.folder / self.chosen_split.question_file

    @property
    def answers_folder(self) -> Path:
        """Below the question file's folder: answers/<split>/<model>/<pruner>, so that no run overwrites another."""
        name = re.sub(r"[:=,]", "_", self.pruner or "as_trained") + (f"_limit_{self.limit}" if self.limit else "")
        own = self.question_file.parent / "answers" / self.chosen_split.name
        return own / get_model_name_from_path(self.model) / name

    @property
    def answers_file(self) -> Path:
        """The joined answers, once all are there. Their score is next to them, as `merge.scores.json`."""
        return self.answers_folder / MERGED

    @property
    def max_new_tokens(self) -> int:
        """The length given, else the benchmark's."""
        told = self.answering.max_new_tokens
        return self.bench.max_new_tokens if told is None else told

    def known_settings(self) -> dict[str, Any]:
        """The settings stored next to the answers, as far as they are known before the model is loaded.

        Values that the checkpoint decides are left out: its own pruner, and template, data type or size where none is
        given.
        """
        settings: dict[str, Any] = {"model": get_model_name_from_path(self.model)}
        if self.pruner is not None:
            parsed = parse_pruner(self.pruner)
            settings["pruner"] = repr(parsed) if parsed else "none"
        told = self.answering
        settings |= {name: getattr(told, name) for name in ("temperature", "top_p", "num_beams")}
        settings |= {"max_new_tokens": self.max_new_tokens, "seed": told.seed}
        given = {name: getattr(told, name) for name in ("conv_mode", "dtype", "max_pixels")}
        return settings | {name: value for name, value in given.items() if value is not None}

    def command(self, prepared: Prepared) -> list[str]:
        """The answering program with its flags, without those of a chunk. prepared: the questions."""
        settings = replace(self.answering, max_new_tokens=self.max_new_tokens).flags()
        return [
            *(sys.executable, "-m", PROGRAMS[self.bench.program], "--model-path", self.model),
            *("--question-file", str(prepared.question_file)),
            *(("--image-folder", str(prepared.images)) if prepared.images else ()),
            *(("--pruner", self.pruner) if self.pruner else ()),
            *(("--skip-bad",) if self.skip_bad else ()),
            *PROGRAM_FLAGS.get(self.bench.program, ()),
            *BENCHMARK_FLAGS.get(self.bench.name, ()),
            *settings,
        ]


def evaluate(spec: EvaluationSpec, progress: bool = False) -> Scored | None:
    """Make the missing answers, join the chunks, score them. An interrupted evaluation is continued.

    The answers are in `spec.answers_folder` as `merge.jsonl`, with the score next to them. Returns None while other
    nodes are not finished. progress: show a bar on stderr during judging; the answering processes always show theirs.

    Raises ValueError, one line, when files of the benchmark are missing, when questions were left unanswered and
    `skip_bad` is not set, and as `score_answers` does.
    """
    part, prepared, folder = spec.share, question_file_of(spec), spec.answers_folder
    folder.mkdir(parents=True, exist_ok=True)
    if not answer_chunks(part, spec.command(prepared), folder):
        raise ValueError(
            "not every question was answered; start again to continue, or give --skip-bad to score the others"
        )
    merged = merge(folder, part.chunks)
    if merged is None:
        return None
    return score_answers(
        spec.bench, spec.chosen_split, spec.folder, merged, spec.judge, spec.limit is not None, progress
    )


def question_file_of(spec: EvaluationSpec) -> Prepared:
    """The question file, built if necessary. Raises ValueError when the benchmark's files are not complete."""
    prepared = spec.bench.prepare(spec.folder, spec.chosen_split, spec.limit)
    if prepared.absent and not spec.skip_bad:
        raise ValueError(
            f"{len(prepared.absent)} images of questions are not in {prepared.images}, such as {prepared.absent[0]}; "
            f"get them, or score without these questions by --skip-bad"
        )
    return prepared
