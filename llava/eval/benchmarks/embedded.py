"""The embedded benchmark: one-word answers about procedural scenes, exact match.

Its folder holds questions.jsonl, blind.jsonl (the same questions about another scene's picture), answers.jsonl
(question_id, answer, category, scene) and images/; `python -m scripts.embedded.data` makes it. Several questions share
a scene, so intervals are bootstrapped over scenes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.benchmarks.contract import Benchmark, Need, Split
from llava.eval.benchmarks.tally import DIGITS, by_part, counts
from llava.eval.files import Row, read_rows
from llava.eval.metrics.bootstrap import mean_with_interval
from llava.eval.sample import Sample, Score, scored

QUESTIONS, BLIND, TRUTH, IMAGES = "questions.jsonl", "blind.jsonl", "answers.jsonl", "images"
MAX_NEW_TOKENS = 8
SOURCE = "python -m scripts.embedded.data --out playground/data/embedded --split test"


def normalise(text: str) -> str:
    """Lower case, without outer white space and a trailing period."""
    return text.strip().lower().removesuffix(".").rstrip()


def build(folder: Path, split: Split) -> list[Row]:
    raise ValueError(f"{folder / QUESTIONS} does not exist; it is made together with the pictures: {SOURCE}")


def load(folder: Path, split: Split, rows: list[Row]) -> list[Sample]:
    """Every question with its truth, counted by category; `scene` says which questions share a picture."""
    return [
        Sample(
            row["question_id"],
            (str(row["question_id"]),),
            row["answer"],
            {"category": row["category"], "scene": row["scene"]},
        )
        for row in read_rows(folder / TRUTH, "answers")
    ]


def score(sample: Sample) -> Score:
    return scored(sample, normalise, lambda text: float(normalise(text) == normalise(sample.truth)))


def accuracy(scores: Sequence[Score]) -> dict[str, Any]:
    """`value` in percent, `n` and the 95 % interval `ci95`; None without scores."""
    known = [(one.value, one.parts["scene"]) for one in scores if one.value is not None]
    mean = mean_with_interval([value for value, _ in known], [scene for _, scene in known])
    if mean is None:
        return {"value": None, "n": 0, "ci95": None}
    value, low, high = (round(100 * number, DIGITS - 2) for number in mean)
    return {"value": value, "n": len(known), "ci95": [low, high]}


def aggregate(scores: Sequence[Score]) -> dict[str, Any]:
    overall = accuracy(scores)
    parts = {name: accuracy(own) for name, own in by_part(scores, "category").items()}
    return {"main": overall["value"], **counts(scores), "ci95": overall["ci95"], "parts": {"category": parts}}


BENCHMARK = Benchmark(
    name="embedded",
    title="Embedded benchmark",
    folders=("embedded",),
    splits=(
        Split(
            "test",
            QUESTIONS,
            (IMAGES,),
            (
                Need((QUESTIONS,), "questions", SOURCE, gigabytes=0.06),
                Need((TRUTH,), "answers", SOURCE, gigabytes=0.06),
                Need((IMAGES,), "pictures", SOURCE, gigabytes=0.06),
            ),
        ),
    ),
    metric="accuracy",
    reported="accuracy over all questions",
    build=build,
    load=load,
    score=score,
    aggregate=aggregate,
    max_new_tokens=MAX_NEW_TOKENS,
)
