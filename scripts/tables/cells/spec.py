"""The specification of a benchmark's cell: what is evaluated, as which script does it, and where its file lies."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from flowcut import Pruner, parse_pruner
from llava.eval import launch
from llava.eval.answering.evaluate import EvaluationSpec
from llava.eval.benchmarks.registry import DATA, benchmark
from llava.mm_utils import get_model_name_from_path
from scripts.tables.cells.file_names import FAMILIES, cell_name

SCRIPTS = Path(__file__).parents[2]


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
        evaluation: what all of this asks for. Whoever runs, reads or describes the cell reads it here.

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
    evaluation: EvaluationSpec = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        benchmark(self.benchmark)
        if not self.script.is_file():
            there = sorted(file.parts[-3] for file in SCRIPTS.glob(f"*/eval/{self.benchmark}.sh"))
            raise ValueError(f"{self.family} has no script for {self.benchmark}; give one of {', '.join(there)}")
        if self.family not in FAMILIES:
            raise ValueError(f"no family {self.family!r}; give one of {', '.join(FAMILIES)}")
        evaluation = launch.spec_of(self._launch_arguments())
        own = (self.model, self.pruner, self.limit, self.data)
        if own != (evaluation.model, evaluation.pruner, evaluation.limit, evaluation.data):
            raise ValueError(f"flags {shlex.join(self.flags)} name model, pruner, limit or data; give them to the cell")
        object.__setattr__(self, "evaluation", evaluation)

    def _launch_arguments(self) -> list[str]:
        """What the script gives to `python -m llava.eval.launch`, and the flags.

        The embedded benchmark leaves the conversation mode to the checkpoint, in every family.
        """
        mode = None if self.benchmark == "embedded" else FAMILIES[self.family]
        return [
            *(self.benchmark, "--data", str(self.data), "--model-path", self.model, "--batch-size", "1"),
            *("--pruner", self.pruner),
            *([] if self.limit is None else ["--limit", str(self.limit)]),
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

    @property
    def parsed_pruner(self) -> Pruner | None:
        return parse_pruner(self.pruner)

    @property
    def name(self) -> str:
        """Name of the cell's file: flowcut_64, with _<split> where it is not the published one, and _limit_N."""
        split, published = self.evaluation.chosen_split, self.evaluation.bench.split()
        suffix = "" if split == published else f"_{split.name}"
        return cell_name(self.pruner) + suffix + (f"_limit_{self.limit}" if self.limit else "")

    @property
    def file(self) -> Path:
        return self.out / get_model_name_from_path(self.model) / self.benchmark / f"{self.name}.json"
