"""GQA, testdev-balanced: one-word answers, exact string equality. Scored offline.

Besides accuracy, as in the official script: binary and open questions, types, question length, reasoning steps, and the
distribution score (chi-square between given and right answers within a group of questions; 0 is best). Its validity,
plausibility, consistency and grounding need scene graphs, which do not exist for testdev: they are not computed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.benchmarks.answer_formats import short_answer
from llava.eval.benchmarks.contract import Benchmark, Need, Split
from llava.eval.benchmarks.tally import DIGITS, accuracy
from llava.eval.files import Row, field_of, read_json, write_rows
from llava.eval.sample import Sample, Score, scored

SITE = "https://cs.stanford.edu/people/dorarad/gqa/download.html"
QUESTIONS = "data/testdev_balanced_questions.json"
# Steps that the official script does not count as reasoning.
_ASKING = ("exist", "query: name", "choose name")

TESTDEV = Split(
    "testdev_balanced",
    "llava_gqa_testdev_balanced.jsonl",
    ("data/images",),
    (
        Need((QUESTIONS,), "questions and answers", f"{SITE} (questions, balanced)", gigabytes=1.4),
        Need(("data/images",), "pictures", f"{SITE} (images)", asking=True, gigabytes=20),
    ),
    published=12578,
)


def build(folder: Path, split: Split) -> list[Row]:
    questions = read_json(folder / QUESTIONS)
    return [
        {
            "question_id": question_id,
            "image": f"{field_of(question, 'imageId', QUESTIONS)}.jpg",
            "text": short_answer(field_of(question, "question", QUESTIONS)),
            "category": "default",
        }
        for question_id, question in questions.items()
        if field_of(question, "isBalanced", QUESTIONS)
    ]


def load(folder: Path, split: Split, rows: list[Row]) -> list[Sample]:
    questions = read_json(folder / QUESTIONS)
    return [
        Sample(question_id, (question_id,), question["answer"], _parts(question))
        for question_id, question in questions.items()
        if question["isBalanced"]
    ]


def _parts(question: Row) -> dict[str, Any]:
    types = question.get("types", {})
    operations = [f"{step['operation']}: {step['argument']}" for step in question.get("semantic", ())]
    structural = types.get("structural")
    return {
        "kind": None if structural is None else "open" if structural == "query" else "binary",
        "structural": structural,
        "semantic": types.get("semantic"),
        "words": len(question["question"].split()),
        "steps": sum(not any(asking in operation for asking in _ASKING) for operation in operations),
        "group": question.get("groups", {}).get("global"),
    }


def parse(text: str) -> str:
    """The normalised answer: lower case, without trailing full stops."""
    return text.rstrip(".").lower()


def score(sample: Sample) -> Score:
    return scored(sample, parse)


def distribution(scores: Sequence[Score]) -> float | None:
    """Chi-square of given against right answers within each group, averaged with the groups' sizes; 0 is best."""
    right: dict[str, Counter[str]] = defaultdict(Counter)
    given: dict[str, Counter[str | None]] = defaultdict(Counter)
    for one in scores:
        group = one.parts.get("group")
        if group is not None and one.value is not None:
            right[group][one.truth] += 1
            given[group][one.parsed] += 1
    weighted = 0.0
    for group, wanted in right.items():
        chi = sum((given[group][answer] - often) ** 2 / often for answer, often in wanted.items())
        weighted += chi * wanted.total()
    size = sum(wanted.total() for wanted in right.values())
    return round(weighted / size, DIGITS) if size else None


def aggregate(scores: Sequence[Score]) -> dict[str, Any]:
    summary = accuracy(scores, "kind", "structural", "semantic", "words", "steps")
    answered = sum(one.value is not None and one.parts.get("group") is not None for one in scores)
    summary["parts"]["distribution"] = {"chi-square": {"value": distribution(scores), "n": answered}}
    return summary


def predictions(answers: Sequence[tuple[str, str]]) -> list[Row]:
    """The official evaluator's prediction list from (question id, answer) pairs."""
    return [{"questionId": question_id, "prediction": parse(text)} for question_id, text in answers]


def export(folder: Path, split: Split, samples: Sequence[Sample], stem: Path) -> Path:
    file = stem.with_name(stem.name + ".predictions.json")
    write_rows(predictions([(str(one.question_id), one.text) for one in samples if one.text is not None]), file)
    return file


BENCHMARK = Benchmark(
    name="gqa",
    title="GQA",
    folders=("gqa",),
    splits=(TESTDEV,),
    metric="accuracy",
    reported="accuracy on testdev-balanced",
    paper=61.9,
    build=build,
    load=load,
    score=score,
    aggregate=aggregate,
    export=export,
)
