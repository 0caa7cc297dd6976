"""Means of scores, overall and by category; missing scores are counted and excluded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

from llava.eval.sample import Score

DIGITS = 4


def percent(scores: Iterable[Score]) -> dict[str, Any]:
    """100 times the mean of the existing values (None if there are none), and their number."""
    values = [score.value for score in scores if score.value is not None]
    return {"value": round(100 * sum(values) / len(values), DIGITS) if values else None, "n": len(values)}


def by_part(scores: Iterable[Score], heading: str) -> dict[str, list[Score]]:
    """The scores of each category under a heading, categories in order; scores without the heading are left out."""
    groups = defaultdict(list)
    for score in scores:
        if score.parts.get(heading) is not None:
            groups[score.parts[heading]].append(score)
    return {str(name): groups[name] for name in sorted(groups, key=lambda name: (not isinstance(name, int), name))}


def percents(scores: Sequence[Score], heading: str) -> dict[str, dict[str, Any]]:
    return {name: percent(own) for name, own in by_part(scores, heading).items()}


def counts(scores: Sequence[Score]) -> dict[str, int]:
    """n: how many have a value; missing: how many questions have no answer."""
    return {
        "n": sum(score.value is not None for score in scores),
        "missing": sum(not score.answered for score in scores),
    }


def accuracy(scores: Sequence[Score], *headings: str) -> dict[str, Any]:
    """The summary of a benchmark whose number is the mean over all questions."""
    parts = {heading: percents(scores, heading) for heading in headings}
    return {"main": percent(scores)["value"], **counts(scores), "parts": parts}


def total(values: Iterable[float | None]) -> float | None:
    """The sum; None when one of them is missing, or there is none."""
    return _of_all(values, sum)


def mean(values: Iterable[float | None]) -> float | None:
    """The mean; None when one of them is missing, or there is none."""
    return _of_all(values, fmean)


def _of_all(values: Iterable[float | None], reduce: Callable[[list[float]], float]) -> float | None:
    numbers = []
    for value in values:
        if value is None:
            return None
        numbers.append(value)
    return round(reduce(numbers), DIGITS) if numbers else None
