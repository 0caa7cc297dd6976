"""Joins answers with their questions by id, never by position, and reports mismatches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from llava.eval.files import Row, read_rows
from llava.eval.sample import Sample
from llava.given import home_path


class Join(NamedTuple):
    """samples: all of them, in the benchmark's order. unknown: ids of answers to no question. repeated: answers that
    duplicate an earlier line of the same question."""

    samples: list[Sample]
    unknown: list[Hashable]
    repeated: int

    @property
    def missing(self) -> list[int | str]:
        """Ids of the questions without an answer."""
        return [sample.question_id for sample in self.samples if sample.text is None]


def read_answers(path: str | Path) -> list[Row]:
    """The lines of an answers file. Raises ValueError, one line, when it is missing or a line is no answer."""
    rows = read_rows(home_path(path), "answers")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("text"), str) or not isinstance(row.get("question_id"), (int, str)):
            raise ValueError(f"{path} line {number} has no question_id or no text; give a file of LLaVA's answer lines")
    return rows


def join(samples: Sequence[Sample], answers: Sequence[Row], key: Callable[[Row], Hashable]) -> Join:
    """Each sample with its answer.

    Questions with the same key (a benchmark may have duplicates) get its answers in order. Raises ValueError, one
    line, for two different answers to one question, and when no answer matches.
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
                f"with one answer per question"
            )
    if answers and len(unknown) == len(answers):
        raise ValueError(
            f"none of the {len(answers)} answers (first: {unknown[0]!r}) belongs to a question here; give the answers "
            f"to this benchmark and split"
        )
    return Join(joined, unknown, repeated)
