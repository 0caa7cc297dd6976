"""Answers find their questions by id, never by position; what does not fit together is told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llava.eval.benchmarks.files import Row, read_rows

if TYPE_CHECKING:
    from llava.eval.judge_protocol import Verdict


@dataclass(frozen=True)
class Sample:
    """A question as scoring sees it.

    keys: what an answer may be joined by; any of them. truth: what is right, in the benchmark's own form, None where
    it is not public. parts: the headings it is counted under. extra: what export or parsing need besides.
    text, prompt: what the model said, and to what; None when it said nothing yet. verdicts: what a judge said to that,
    one a run; none without a judge.
    """

    question_id: int | str
    keys: tuple[Hashable, ...]
    truth: Any = None
    parts: Mapping[str, Any] = field(default_factory=dict)
    extra: Any = None
    text: str | None = None
    prompt: str | None = None
    verdicts: tuple[Verdict, ...] = ()


class Join(NamedTuple):
    """samples: all of them, in the benchmark's order. unknown: ids of answers to no question. repeated: answers that
    say again what an earlier line of the same question said."""

    samples: list[Sample]
    unknown: list[Hashable]
    repeated: int

    @property
    def missing(self) -> list[int | str]:
        """Ids of the questions without an answer."""
        return [sample.question_id for sample in self.samples if sample.text is None]


def read_answers(path: str | Path) -> list[Row]:
    """The lines of an answers file. Raises ValueError, one line, when it is missing or a line is no answer."""
    rows = read_rows(Path(path).expanduser(), "answers")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("text"), str) or not isinstance(row.get("question_id"), (int, str)):
            raise ValueError(f"{path} line {number} has no question_id or no text; give a file of LLaVA's answer lines")
    return rows


def join(samples: Sequence[Sample], answers: Sequence[Row], key: Callable[[Row], Hashable]) -> Join:
    """Each sample with its answer.

    Questions that share a key (a benchmark may ask the same twice) take its answers in order. Raises ValueError, one
    line, for two different answers to one question, and when no answer fits.
    """
    places = defaultdict(list)
    for index, sample in enumerate(samples):
        for own in sample.keys:
            places[own].append(index)
    joined = list(samples)
    unknown: list[Hashable] = []
    repeated = 0
    for row in answers:
        own = key(row)
        said = [joined[index].text for index in places.get(own, ())]
        if not said:
            unknown.append(row["question_id"])
        elif None in said:
            index = places[own][said.index(None)]
            joined[index] = replace(joined[index], text=row["text"], prompt=row.get("prompt"))
        elif row["text"] in said:
            repeated += 1
        else:
            raise ValueError(
                f"question {row['question_id']} has two answers, {said[0]!r} and {row['text']!r}; give a file "
                f"with one answer a question"
            )
    if answers and len(unknown) == len(answers):
        raise ValueError(
            f"none of the {len(answers)} answers (first: {unknown[0]!r}) belongs to a question here; give the answers "
            f"to this benchmark and split"
        )
    return Join(joined, unknown, repeated)
