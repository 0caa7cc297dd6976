"""MMMU, val: college questions, multiple choice and open. LLaVA has no script for it; the parsing is MMMU's own.

Input: `validation.jsonl` with MMMU's fields `id, question, options (a list, or its text), answer, question_type` and
`image`, or the Hub's parquet files, which `prepare` unpacks into that (needs pyarrow). LLaVA gets the first picture
only. Where the official parser finds no letter it guesses; here the guess depends on the question's id only, and the
accuracy that counts guesses as wrong is reported too.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.benchmarks.answer_formats import OPTION_LETTER, SHORT_ANSWER, with_options
from llava.eval.benchmarks.contract import Benchmark, Split
from llava.eval.benchmarks.hub import hub_need, unpack_parquet
from llava.eval.benchmarks.mmmu_parse import multiple_choice_letter, open_answer_right
from llava.eval.benchmarks.tally import accuracy, percent
from llava.eval.files import Row, field_of, read_rows
from llava.eval.metrics.option_letter import LETTERS
from llava.eval.sample import Sample, Score, scored

ROWS = "validation.jsonl"
PARQUET = "**/validation-*.parquet"
MULTIPLE_CHOICE = "multiple-choice"
GUESS = "guess "

VAL = Split(
    "val",
    "llava_mmmu_val.jsonl",
    ("images",),
    (hub_need(ROWS, PARQUET, "MMMU/MMMU", 0.34),),
    published=900,
)


def unpack(folder: Path, split: Split) -> None:
    """Make `validation.jsonl` and `images/` from the parquet files, once."""
    unpack_parquet(folder, PARQUET, ROWS, _row)


def _row(number: int, row: Row) -> tuple[Row, Any]:
    kept = {name: row[name] for name in ("id", "question", "options", "answer", "question_type")}
    return {"question_id": row["id"], **kept}, row["image_1"]


def options_of(row: Row) -> list[str]:
    """The options; the Hub stores the list as Python text."""
    options = row.get("options") or []
    return [str(one) for one in (ast.literal_eval(options) if isinstance(options, str) else options)]


def answers_of(row: Row) -> list[str]:
    """All right answers of an open question; several are stored as a list, or as its Python text."""
    answer = field_of(row, "answer", ROWS)
    if isinstance(answer, str) and answer.startswith("["):
        answer = ast.literal_eval(answer)
    return [str(one) for one in answer] if isinstance(answer, list) else [str(answer)]


def question_of(row: Row) -> str:
    question = field_of(row, "question", ROWS)
    if row["question_type"] == MULTIPLE_CHOICE:
        return f"{with_options(question, options_of(row))}\n\n{OPTION_LETTER}"
    return f"{question}\n\n{SHORT_ANSWER}"


def build(folder: Path, split: Split) -> list[Row]:
    return [
        {
            "question_id": field_of(row, "id", ROWS),
            "image": field_of(row, "image", ROWS),
            "text": question_of(row),
            "category": subject(row["id"]),
        }
        for row in read_rows(folder / ROWS)
    ]


def subject(question_id: str) -> str:
    """`validation_Art_Theory_3` -> `Art_Theory`."""
    return question_id.partition("_")[2].rpartition("_")[0]


def load(folder: Path, split: Split, rows: list[Row]) -> list[Sample]:
    return [
        Sample(
            row["id"],
            (row["id"],),
            answers_of(row),
            {"kind": row["question_type"], "subject": subject(row["id"])},
            dict(zip(LETTERS, options_of(row), strict=False)),
        )
        for row in read_rows(folder / ROWS)
    ]


def parse(sample: Sample, text: str) -> str:
    """The chosen letter, `guess X` if it is guessed; an open answer unchanged."""
    if sample.parts["kind"] != MULTIPLE_CHOICE:
        return text
    letter = multiple_choice_letter(text, sample.extra)
    return letter or GUESS + random.Random(str(sample.question_id)).choice(list(sample.extra))


def score(sample: Sample) -> Score:
    if sample.parts["kind"] != MULTIPLE_CHOICE:
        return scored(sample, str, lambda text: float(open_answer_right(text, sample.truth)))
    return scored(
        sample,
        lambda text: parse(sample, text),
        lambda text: float(parse(sample, text).removeprefix(GUESS) in sample.truth),
    )


def aggregate(scores: Sequence[Score]) -> dict[str, Any]:
    summary = accuracy(scores, "kind", "subject")
    guessed = [(one.parsed or "").startswith(GUESS) and one.parts["kind"] == MULTIPLE_CHOICE for one in scores]
    strict = [
        one._replace(value=0.0) if guess and one.value is not None else one
        for one, guess in zip(scores, guessed, strict=True)
    ]
    summary["parts"] = {"guesses are wrong": {f"{sum(guessed)} guessed": percent(strict)}, **summary["parts"]}
    return summary


BENCHMARK = Benchmark(
    name="mmmu",
    title="MMMU",
    folders=("mmmu",),
    splits=(VAL,),
    metric="accuracy",
    reported="accuracy on val (Table 9)",
    build=build,
    load=load,
    score=score,
    aggregate=aggregate,
    unpack=unpack,
)
