"""TextVQA, val: short answers to questions about text in pictures, ten human answers each. Scored offline.

The published number is with Rosetta's OCR tokens in the prompt; the split `val-no-ocr` leaves them out and scores about
12 points lower.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from llava.eval.benchmarks.answer_formats import short_answer
from llava.eval.benchmarks.contract import Benchmark, Need, Split
from llava.eval.benchmarks.tally import accuracy
from llava.eval.files import Row, field_of, read_json
from llava.eval.metrics.vqa_normalise import m4c, m4c_accuracy
from llava.eval.sample import Sample, Score, scored

SITE = "https://dl.fbaipublicfiles.com/textvqa"
ANNOTATION = "TextVQA_0.5.1_val.json"
OCR = "TextVQA_Rosetta_OCR_v0.2_val.json"
REFERENCE = "Reference OCR token:"
_OLD_PROMPT = re.compile(r"Question: (.*?) Short answer:", re.DOTALL)

_NEEDS = (
    Need((ANNOTATION,), "questions and human answers", f"{SITE}/data/{ANNOTATION}"),
    Need(
        ("train_images",),
        "pictures (val's are among train's)",
        f"{SITE}/images/train_val_images.zip",
        asking=True,
        gigabytes=6.5,
    ),
)
WITH_OCR = Split(
    "val",
    "llava_textvqa_val_v051_ocr.jsonl",
    ("train_images",),
    (*_NEEDS, Need(("llava_textvqa_val_v051_ocr.jsonl", OCR), "OCR tokens", f"{SITE}/data/{OCR}")),
    published=5000,
)
WITHOUT_OCR = Split(
    "val-no-ocr", "llava_textvqa_val_v051.jsonl", ("train_images",), _NEEDS, published=5000, label="no OCR tokens"
)


def annotated(file: Path) -> list[Row]:
    return field_of(read_json(file), "data", str(file))


def build(folder: Path, split: Split) -> list[Row]:
    tokens = ocr_tokens(folder / OCR) if split.name == WITH_OCR.name else None
    return [
        {
            "question_id": row["question_id"],
            "image": f"{row['image_id']}.jpg",
            "text": short_answer(_question(row, tokens)),
            "category": "default",
        }
        for row in annotated(folder / ANNOTATION)
    ]


def ocr_tokens(file: Path) -> dict[str, list[str]]:
    """Image id -> Rosetta's OCR tokens. White space in a token is folded, because a newline would break the prompt."""
    return {row["image_id"]: [" ".join(token.split()) for token in row["ocr_tokens"]] for row in annotated(file)}


def _question(row: Row, tokens: dict[str, list[str]] | None) -> str:
    if tokens is None:
        return row["question"]
    return f"{row['question']}\n{REFERENCE} {', '.join(tokens.get(row['image_id'], []))}"


def samples_of(rows: Sequence[Row]) -> list[Sample]:
    """The annotated questions; found by question id, or by picture and text for files that have image ids."""
    return [
        Sample(
            row["question_id"],
            (str(row["question_id"]), (row["image_id"], row["question"].lower())),
            row["answers"],
            extra=row["image_id"],
        )
        for row in rows
    ]


def load(folder: Path, split: Split, rows: list[Row]) -> list[Sample]:
    return samples_of(annotated(folder / ANNOTATION))


def question_of(prompt: str) -> str:
    """The question, in lower case, from a prompt of LLaVA's question file.

    Raises ValueError for a prompt of another format, for instance with a line break inside an OCR token.
    """
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: ") and (found := _OLD_PROMPT.search(prompt)):
        return found.group(1).lower()
    if f"{REFERENCE} " in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith(REFERENCE) else 0].lower()
    if len(lines) == 2:
        return lines[0].lower()
    raise ValueError(
        f"no question was found in the prompt {prompt!r}; use the question file of `llava.eval.prepare textvqa`"
    )


def answer_key(row: Row) -> Hashable:
    """The question id of the prepared file; image id and text for LLaVA's file, whose ids are image ids."""
    if isinstance(row["question_id"], int):
        return str(row["question_id"])
    if "prompt" not in row:
        raise ValueError(f"the answer to {row['question_id']} has no prompt; image ids repeat, so it is needed")
    return row["question_id"], question_of(row["prompt"])


def score(sample: Sample) -> Score:
    return scored(sample, m4c, lambda text: m4c_accuracy(text, sample.truth))


def aggregate(scores: Sequence[Score]) -> dict[str, Any]:
    return accuracy(scores)


BENCHMARK = Benchmark(
    name="textvqa",
    title="TextVQA",
    folders=("textvqa",),
    splits=(WITH_OCR, WITHOUT_OCR),
    metric="accuracy",
    reported="accuracy on val, with OCR tokens in the prompt",
    paper=58.2,
    build=build,
    load=load,
    score=score,
    aggregate=aggregate,
    answer_key=answer_key,
)
