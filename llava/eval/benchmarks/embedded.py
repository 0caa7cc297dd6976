"""The embedded benchmark: one-word answers about procedural scenes, exact match.

Its folder holds questions.jsonl, answers.jsonl (question_id, answer, category, scene) and images/; scripts/embedded
makes it. As a program: scores an answers file, the last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llava.eval.confidence import bootstrap_interval

QUESTIONS, BLIND, TRUTH, IMAGES = "questions.jsonl", "blind.jsonl", "answers.jsonl", "images"
MAX_NEW_TOKENS = 8


class Sample(NamedTuple):
    """A question's truth and what the model said; `text` is None when it said nothing yet."""

    question_id: str
    answer: str
    category: str
    scene: int
    text: str | None


class Score(NamedTuple):
    value: float
    category: str
    scene: int


def normalise(text: str) -> str:
    """Lower case, outer white space and a trailing period gone."""
    return text.strip().lower().removesuffix(".").rstrip()


def score(sample: Sample) -> float:
    """1.0 for the right answer, 0.0 for another. Raises ValueError for none: that is missing, not wrong."""
    if sample.text is None:
        raise ValueError(f"question {sample.question_id} has no answer; score only what was answered")
    return float(normalise(sample.text) == normalise(sample.answer))


def scores(samples: Sequence[Sample]) -> list[Score]:
    """The scores of the answered samples."""
    return [Score(score(one), one.category, one.scene) for one in samples if one.text is not None]


def aggregate(scores: Sequence[Score]) -> dict[str, Any]:
    """Accuracy overall and per category, each with its number of questions `n` and 95 % interval `ci95`.

    The interval is bootstrapped over scenes. Accuracy and interval are None where there is nothing to average.
    """
    by_category = defaultdict(list)
    for one in scores:
        by_category[one.category].append(one)
    return {**_mean(scores), "categories": {name: _mean(own) for name, own in sorted(by_category.items())}}


def _mean(scores: Sequence[Score]) -> dict[str, Any]:
    if not scores:
        return {"n": 0, "accuracy": None, "ci95": None}
    values = [one.value for one in scores]
    low, high = bootstrap_interval(values, [one.scene for one in scores])
    return {"n": len(values), "accuracy": round(sum(values) / len(values), 4), "ci95": [round(low, 4), round(high, 4)]}


def read_samples(truth_file: str | Path, answers_file: str | Path) -> list[Sample]:
    """Every question of the truth file with its answer, joined by question_id."""
    for file in (truth_file, answers_file):
        if not Path(file).is_file():
            raise ValueError(
                f"{file} does not exist; scoring needs the benchmark's answers.jsonl and a model's answers"
            )
    said = {row["question_id"]: row["text"] for row in _rows(answers_file)}
    return [
        Sample(row["question_id"], row["answer"], row["category"], row["scene"], said.get(row["question_id"]))
        for row in _rows(truth_file)
    ]


def _rows(file: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text("utf-8").split("\n") if line]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("playground/data/embedded"), help="the benchmark's folder")
    parser.add_argument("--answers-file", required=True, help="JSON lines as model_vqa_loader writes them")
    args = parser.parse_args(argv)
    try:
        samples = read_samples(args.data / TRUTH, args.answers_file)
    except ValueError as error:
        sys.exit(f"error: {error}")
    summary = aggregate(scores(samples))
    for name, part in {**summary["categories"], "overall": summary}.items():
        accuracy = "-" if part["accuracy"] is None else f"{part['accuracy']:.3f}"
        print(f"{name:12} {accuracy:>6}  n={part['n']}")
    missing = len(samples) - summary["n"]
    print(json.dumps({"benchmark": "embedded", **summary, "missing": missing}))


if __name__ == "__main__":
    main()
