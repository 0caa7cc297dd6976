"""Accuracy, tokens and FLOPs of every committed row of the embedded benchmark: the points of the curves."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flowcut.registry import METHODS
from scripts.embedded.rows import BUDGETS
from scripts.tables.cells.paired import Shared


class Point(NamedTuple):
    """One method at one budget.

    Attributes:
        method: its name in the registry; "none" for the unpruned model.
        budget: visual tokens; the place in a column of the results page.
        tokens: mean number of visual tokens that the language model's layers read.
        gflops: encoder, projector and prefill of one question.
        accuracy, low, high: percent, with the 95 % interval.
        questions: the number of questions, the same for all points of a budget.
        inside: whether the method cuts inside the language model.
    """

    method: str
    budget: int
    tokens: float
    gflops: float
    accuracy: float
    low: float
    high: float
    questions: int
    inside: bool


def points_of(cells: Sequence[Mapping[str, Any]]) -> list[Point]:
    """The points of all cells: first the unpruned model on all its questions, then budget by budget.

    As on the results page, the cells of a budget are compared on the questions that they share.

    Raises:
        ValueError: the cells of a budget share no question.
    """
    none = next(cell for cell in cells if cell["pruner"] == "none")
    found = [_point(none, none["budget"], Shared.of([none]), 0)]
    for budget in BUDGETS:
        own = [cell for cell in cells if cell["pruner"] != "none" and cell["budget"] == budget]
        own.sort(key=lambda cell: str(cell["method"]))
        if own:
            shared = Shared.of([none, *own])
            found += [_point(cell, budget, shared, number) for number, cell in enumerate(own, 1)]
    return found


def cuts_inside(cell: Mapping[str, Any]) -> bool:
    """Whether the cell's method drops tokens inside the language model."""
    return cell["tokens"]["llm_inputs"] != cell["tokens"]["llm"]


def _point(cell: Mapping[str, Any], budget: int, shared: Shared, number: int) -> Point:
    mean, tokens = shared.accuracy(number), cell["tokens"]
    return Point(
        cell["method"],
        budget,
        tokens["llm_inputs"],
        cell["gflops"]["total"],
        mean.value,
        mean.low,
        mean.high,
        len(shared.questions),
        cuts_inside(cell),
    )


def label(method: str) -> str:
    """A method's name as papers write it, from what the registry says to cite; controls by their own names."""
    if method not in METHODS:
        return method
    cited = METHODS[method].paper
    if cited.startswith("control"):
        return method
    name = cited.split(",")[0].removeprefix("LLaVA-").replace("Recoverable Compression", "RCom")
    return f"{name}, literal" if method == "flowcut-paper" else name


def as_csv(points: Sequence[Point]) -> str:
    """The points as a file with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "budget", "tokens", "gflops", "accuracy", "low", "high", "questions"])
    for one in points:
        numbers = (f"{number:.2f}" for number in (one.tokens, one.gflops, one.accuracy, one.low, one.high))
        writer.writerow([one.method, one.budget, *numbers, one.questions])
    return text.getvalue()
