"""Means over the runs of a judge: each run gives a number, the score is the mean of the numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, pstdev
from typing import Any

from llava.eval.benchmarks.tally import DIGITS
from llava.eval.sample import Sample, Score

NOT_JUDGED = "not judged"  # the heading of metrics without a judge


def values_of(sample: Sample) -> tuple[Any, ...]:
    """The verdicts of the judge's runs on an answer, None for a failed run; empty without a judge."""
    return tuple(verdict.value for verdict in sample.verdicts)


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None if there are none."""
    there = [value for value in values if value is not None]
    return fmean(there) if there else None


def over_runs(runs: Sequence[Sequence[Any]], number: Callable[[Sequence[Any]], float | None]) -> dict[str, Any]:
    """The mean of the runs' numbers as `value`, their standard deviation (over n), each of them, and n answers.

    runs: for each answer its verdicts, one per run. number: the number of one run's verdicts, without failed ones.
    """
    judged = [own for own in runs if any(value is not None for value in own)]
    numbers = []
    for place in range(max(map(len, judged), default=0)):
        found = number([own[place] for own in judged if own[place] is not None])
        if found is not None:
            numbers.append(found)
    return {
        "value": round(fmean(numbers), DIGITS) if numbers else None,
        "n": len(judged),
        "std": round(pstdev(numbers), DIGITS) if numbers else None,
        "runs": [round(found, DIGITS) for found in numbers],
    }


def percent_of_runs(runs: Sequence[Sequence[float | None]]) -> dict[str, Any]:
    """`over_runs` of 100 times the mean."""
    return over_runs(runs, lambda values: 100 * fmean(values) if values else None)


def offline(scores: Sequence[Score], *names: str) -> dict[str, Any]:
    """Percentages that need no judge, kept in the scores' parts under these names."""
    return {name: percent_of_runs([(one.parts.get(name),) for one in scores]) for name in names}


def contains(text: str, words: str) -> bool:
    """Whether normalised words occur consecutively in a normalised text, as whole words."""
    return f" {words} " in f" {text} "
