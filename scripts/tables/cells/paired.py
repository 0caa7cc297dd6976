"""Cells of the embedded benchmark question by question: several cells on the questions that all of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from llava.eval.metrics.bootstrap import bootstrap_interval

CellDocument = Mapping[str, Any]
"""The JSON of a cell."""


class Mean(NamedTuple):
    """A mean in percent, or in points where it is one of differences, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def signed(self) -> str:
        return f"{self.value:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


@dataclass(frozen=True)
class Shared:
    """Scores [questions] of each cell, 0..100, on the shared questions; their scenes and types."""

    questions: tuple[str, ...]
    scenes: tuple[str, ...]
    types: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, cells: Sequence[CellDocument]) -> Shared:
        """Raises ValueError when the cells share no question, or are of different data."""
        own = [cell["questions"].split() for cell in cells]
        common = set(own[0]).intersection(*own[1:])
        questions = [question for question in own[0] if question in common]
        if not questions:
            raise ValueError(f"the {len(cells)} cells share no question; make them with one --limit")
        numbers = [dict(zip(ids, cell["scores"].split(), strict=True)) for ids, cell in zip(own, cells, strict=True)]
        facts = [
            dict(zip(ids, zip(cell["scenes"].split(), cell["types"].split(), strict=True), strict=True))
            for ids, cell in zip(own, cells, strict=True)
        ]
        if any(fact[question] != facts[0][question] for fact in facts for question in questions):
            raise ValueError("the cells are of different data: a question is about another scene; make them again")
        scenes, types = zip(*(facts[0][question] for question in questions), strict=True)
        scores = tuple(tuple(100 * float(one[question]) for question in questions) for one in numbers)
        return cls(tuple(questions), scenes, types, scores)

    def without(self, kind: str) -> Shared:
        """The same cells on the questions that are not of this type.

        Raises:
            ValueError: all of them are.
        """
        left = [place for place, own in enumerate(self.types) if own != kind]
        if not left:
            raise ValueError(f"all questions are of type {kind}")

        def pick(values: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(values[place] for place in left)

        return Shared(
            pick(self.questions), pick(self.scenes), pick(self.types), tuple(pick(scores) for scores in self.scores)
        )

    def accuracy(self, cell: int) -> Mean:
        return self._mean(self.scores[cell])

    def by_type(self, cell: int) -> dict[str, float]:
        """Accuracy under each question type, types in order of their names."""
        own: dict[str, list[float]] = {name: [] for name in sorted(set(self.types))}
        for name, score in zip(self.types, self.scores[cell], strict=True):
            own[name].append(score)
        return {name: sum(scores) / len(scores) for name, scores in own.items()}

    def difference(self, cell: int, other: int) -> Mean:
        """The cell's accuracy less the other's, question by question, bootstrapped over scenes."""
        return self._mean([a - b for a, b in zip(self.scores[cell], self.scores[other], strict=True)])

    def _mean(self, values: Sequence[float]) -> Mean:
        return Mean(sum(values) / len(values), *bootstrap_interval(values, self.scenes))
