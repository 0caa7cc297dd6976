"""AI2D, test: multiple choice over diagrams. LLaVA has no script for it; prompt and parsing are lmms-eval's.

Input: `test.jsonl` with `question_id, image, question, options, answer` (index from 0, or letter) and `images/`, or the
Hub's parquet files, which `prepare` unpacks into those (needs pyarrow). Two versions of the pictures exist, with and
without masked labels; the published number fits the masked ones (lmms-lab/ai2d).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.benchmarks.answer_formats import multiple_choice
from llava.eval.benchmarks.contract import Benchmark, Split
from llava.eval.benchmarks.hub import hub_need, unpack_parquet
from llava.eval.benchmarks.tally import accuracy
from llava.eval.files import Row, field_of, read_rows
from llava.eval.metrics.option_letter import LETTERS
from llava.eval.sample import Sample, Score, scored

ROWS = "test.jsonl"
PARQUET = "**/test-*.parquet"
_LETTER_FIRST = re.compile(r"([A-Z])\.")

TEST = Split(
    "test",
    "llava_ai2d_test.jsonl",
    ("images",),
    (hub_need(ROWS, PARQUET, "lmms-lab/ai2d", 0.14),),
    published=3088,
)


def unpack(folder: Path, split: Split) -> None:
    """Make `test.jsonl` and `images/` from the parquet files, once."""
    unpack_parquet(folder, PARQUET, ROWS, _row)


def _row(number: int, row: Row) -> tuple[Row, Any]:
    kept = {"question_id": number, "question": row["question"], "options": row["options"], "answer": row["answer"]}
    return kept, row["image"]


def build(folder: Path, split: Split) -> list[Row]:
    return [
        {
            "question_id": field_of(row, "question_id", ROWS),
            "image": field_of(row, "image", ROWS),
            "text": multiple_choice(field_of(row, "question", ROWS), field_of(row, "options", ROWS)),
            "category": "default",
        }
        for row in read_rows(folder / ROWS)
    ]


def letter_of(answer: Any) -> str:
    """The letter of an answer given as index from 0, as text or number, or as the letter itself."""
    return LETTERS[int(answer)] if str(answer).isdecimal() else str(answer)


def load(folder: Path, split: Split, rows: list[Row]) -> list[Sample]:
    return [
        Sample(row["question_id"], (str(row["question_id"]),), letter_of(row["answer"]))
        for row in read_rows(folder / ROWS)
    ]


def parse(text: str) -> str:
    """The letter before a period at the beginning, else the whole answer."""
    text = text.strip()
    found = _LETTER_FIRST.match(text)
    return found.group(1) if found else text


def score(sample: Sample) -> Score:
    return scored(sample, parse)


def aggregate(scores: Sequence[Score]) -> dict[str, Any]:
    return accuracy(scores)


BENCHMARK = Benchmark(
    name="ai2d",
    title="AI2D",
    folders=("ai2d",),
    splits=(TEST,),
    metric="accuracy",
    reported="accuracy on test (Table 9)",
    max_new_tokens=16,
    build=build,
    load=load,
    score=score,
    aggregate=aggregate,
    unpack=unpack,
)
