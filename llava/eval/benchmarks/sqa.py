"""ScienceQA: multiple choice; the paper's number is the accuracy on the questions with a picture.

All questions of the split are answered, those without a picture as text only. Scored offline.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.benchmarks.answer_formats import with_options
from llava.eval.benchmarks.contract import Benchmark, Need, Split
from llava.eval.benchmarks.tally import accuracy, percent
from llava.eval.files import Row, field_of, read_json
from llava.eval.metrics.option_letter import LETTERS
from llava.eval.sample import Sample, Score, scored

SOURCE = "https://github.com/lupantech/ScienceQA (data/scienceqa)"
OPTIONS = tuple("ABCDE")
FAILED = "FAILED"
IMAGE = "<image>"
# The reference does not escape the period, so any character after the letter matches.
_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")


def _split(name: str, published: int | None = None, label: str = "") -> Split:
    return Split(
        name,
        f"llava_{name}_CQM-A.json",
        (f"images/{name}",),
        (
            Need(("problems.json",), "questions and answers", SOURCE),
            Need(("pid_splits.json",), "which question is in which split", SOURCE),
            Need((f"images/{name}",), "pictures, <id>/image.png", SOURCE, asking=True),
        ),
        published,
        label,
    )


def problems(folder: Path, split: str) -> dict[str, Row]:
    """Problem id -> the official record, of one split and in its order. Raises ValueError for an unknown split."""
    splits = read_json(folder / "pid_splits.json")
    if split not in splits:
        raise ValueError(f"{folder / 'pid_splits.json'} has no split {split!r}; give one of {', '.join(splits)}")
    official = read_json(folder / "problems.json")
    return {problem_id: field_of(official, problem_id, "problems.json") for problem_id in splits[split]}


def build(folder: Path, split: Split) -> list[Row]:
    rows = []
    for problem_id, problem in problems(folder, split.name).items():
        context = [f"Context: {problem['hint']}"] if problem.get("hint") else []
        question = "\n".join([*context, with_options(problem["question"], problem["choices"])])
        pictured = problem.get("image") is not None
        row = {"id": problem_id}
        if pictured:
            row["image"] = f"{problem_id}/{problem['image']}"
        human = f"{IMAGE}\n{question}" if pictured else question
        answer = LETTERS[problem["answer"]]
        rows.append({**row, "conversations": [{"from": "human", "value": human}, {"from": "gpt", "value": answer}]})
    return rows


def load(folder: Path, split: Split, rows: list[Row]) -> list[Sample]:
    return [
        Sample(
            problem_id,
            (problem_id,),
            problem["answer"],
            {"subject": problem.get("subject"), "grade": problem.get("grade")},
            {"choices": len(problem["choices"]), "image": problem.get("image") is not None},
        )
        for problem_id, problem in problems(folder, split.name).items()
    ]


def parse(text: str, options: Sequence[str] = OPTIONS) -> str:
    """The letter of an answer: alone, as `X. ...`, or as the only "The answer is X."; else FAILED."""
    if text in options:
        return text
    if text[:1] in options and text[1:3] == ". ":
        return text[0]
    found = _ANSWER_IS.findall(text)
    return found[0] if len(found) == 1 else FAILED


def choice(letter: str, choices: int, options: Sequence[str] = OPTIONS) -> int:
    """The index of a letter among a question's choices, -1 when it is none of them."""
    offered = list(options[:choices])
    return offered.index(letter) if letter in offered else -1


def has_image(sample: Sample) -> bool:
    """Whether the question has a picture: according to the prompt, or to the problem if there is no prompt."""
    return sample.extra["image"] if sample.prompt is None else IMAGE in sample.prompt


def score(sample: Sample) -> Score:
    parts = {**sample.parts, "image": "with" if has_image(sample) else "without"}
    one = scored(sample, parse, lambda text: float(choice(parse(text), sample.extra["choices"]) == sample.truth))
    return one._replace(parts=parts, truth=OPTIONS[sample.truth])


def aggregate(scores: Sequence[Score]) -> dict[str, Any]:
    summary = accuracy(scores, "image", "subject", "grade")
    pictured = percent(one for one in scores if one.parts["image"] == "with")
    summary["parts"] = {"all": {"accuracy": percent(scores)}, **summary["parts"]}
    return {**summary, "main": pictured["value"]}


BENCHMARK = Benchmark(
    name="sqa",
    title="ScienceQA",
    folders=("scienceqa", "sqa"),
    splits=(_split("test", 4241), _split("val", label="val"), _split("train", label="train")),
    metric="IMG accuracy",
    reported="accuracy over the questions with a picture (IMG)",
    paper=69.5,
    program="science",
    max_new_tokens=1024,
    build=build,
    load=load,
    score=score,
    aggregate=aggregate,
    group=lambda row: row["id"],
)
