"""What will be measured before a table can be written: how many questions, what is there, and about how long it takes.

The time is that of answers that are there, of any cell of the same model. Without any, it is what the paper's table 5
prints for the unpruned LLaVA-1.5-7B or LLaVA-NeXT-7B on an A800, which is said beside the estimate; of other models it
prints none. SECONDS_PER_ANSWER in the environment overrides both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from llava.eval.answering.chunks import MERGED
from llava.forecast import PAPER_MODELS, PAPER_SECONDS, SECONDS_PER_ANSWER, duration, from_environment
from llava.given import json_lines, parse_json, read_each
from scripts.tables.cells.identity import is_stale
from scripts.tables.cells.spec import CellSpec


@dataclass(frozen=True)
class Work:
    """A cell that is missing.

    Attributes:
        questions: how many it has.
        times: milliseconds of each of its answers that is there.
    """

    spec: CellSpec
    questions: int
    times: Sequence[float]

    @classmethod
    def of(cls, spec: CellSpec) -> Work:
        asked = spec.evaluation
        rows = asked.bench.rows(asked.folder, asked.chosen_split)
        if asked.limit is not None:
            rows = asked.bench.subset(rows, asked.limit)
        return cls(spec, len(rows), () if is_stale(spec) else answer_times(asked.answers_folder))

    @property
    def missing(self) -> int:
        return max(0, self.questions - len(self.times))

    def __str__(self) -> str:
        there = f", {len(self.times)} answered before" if self.times else ""
        return f"{self.spec.benchmark}, {self.spec.pruner}, {self.spec.model}: {self.questions} questions{there}"


def answer_times(folder: Path) -> tuple[float, ...]:
    """Milliseconds of the answers in a cell's folder; of chunks, where they are not joined yet."""

    def read(line: bytes) -> tuple[Any, float]:
        row = parse_json(line)
        return row["question_id"], float(row["metadata"]["ms"])

    files = [file for file in sorted(folder.glob("*.jsonl")) if not file.name.endswith(".bad.jsonl")]
    whole = [file for file in files if file.name == MERGED]
    lines = [("", line) for file in whole or files for _, line in json_lines(file)]
    answers, _ = read_each(lines, read)  # the last line of a killed run may be half a line
    return tuple(dict(answers).values())


def estimate(todo: Sequence[Work], before: Mapping[str, Sequence[float]]) -> str:
    """About how long the missing answers take on one device, and by what this was estimated.

    before: milliseconds of answers in cells that are there, by model.
    """
    total, sources, untimed = 0.0, [], 0
    own = from_environment(SECONDS_PER_ANSWER)
    for work in todo:
        spec = work.spec
        known = [*before.get(spec.model, ()), *(ms for one in todo if one.spec.model == spec.model for ms in one.times)]
        if own is not None:
            each, source = own, f"{SECONDS_PER_ANSWER}={own:g}"
        elif known:
            each, source = median(known) / 1000, f"the median of {len(known)} answers that are there"
        elif spec.family in PAPER_SECONDS:
            each = PAPER_SECONDS[spec.family]
            source = f"{1000 * each:.1f} ms, the paper's unpruned {PAPER_MODELS[spec.family]} on an A800"
        else:
            untimed += work.missing
            continue
        total += work.missing * each
        sources += [source] if source not in sources else []
    said = [f"{duration(total)} on one GPU (by {' and '.join(sources)})"] if sources else []
    if untimed:
        said.append(f"no time is known for {untimed} answers, {SECONDS_PER_ANSWER}=s sets one")
    return "; ".join(said)


def plan_of(todo: Sequence[Work], before: Mapping[str, Sequence[float]]) -> str:
    """One line about all that is missing."""
    if not todo:
        return "every cell is there"
    missing, there = sum(work.missing for work in todo), sum(len(work.times) for work in todo)
    answered = f" and {there} are there" if there else ""
    return f"{len(todo)} cells are measured, {missing} answers are missing{answered}: {estimate(todo, before)}"
