"""VizWiz-VQA: questions of blind people. The published number is the server's (test-dev); val can be scored offline.

Many answers are "unanswerable", which is why a model that sees less may score more.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.benchmarks.answer_formats import UNANSWERABLE, short_answer
from llava.eval.benchmarks.contract import Benchmark, Need, Split
from llava.eval.benchmarks.tally import accuracy
from llava.eval.files import Row, field_of, read_json, write_rows
from llava.eval.metrics.vqa_normalise import m4c, m4c_accuracy
from llava.eval.sample import Sample, Score, scored

SITE = "https://vizwiz.cs.colorado.edu/VizWiz_final"


def _split(name: str, published: int, label: str, question_file: str) -> Split:
    needs = (
        Need(
            (f"{name}.json",), "questions" + (", answers" if name == "val" else ""), f"{SITE}/vqa_data/Annotations.zip"
        ),
        Need((name,), "pictures", f"{SITE}/images/{name}.zip", asking=True),
    )
    return Split(name, question_file, (name,), needs, published, label)


TEST = _split("test", 8000, "", "llava_test.jsonl")
VAL = _split("val", 4319, "val", "llava_val.jsonl")


def build(folder: Path, split: Split) -> list[Row]:
    file = f"{split.name}.json"
    return [
        {
            "question_id": number,
            "image": field_of(row, "image", file),
            "text": short_answer(f"{field_of(row, 'question', file)}\n{UNANSWERABLE}"),
            "category": "default",
        }
        for number, row in enumerate(read_json(folder / file))
    ]


def load(folder: Path, split: Split, rows: list[Row]) -> list[Sample]:
    """A picture has one question, so the annotation of a question row is found by its picture.

    Raises ValueError for a picture without annotation.
    """
    official = {row["image"]: row for row in read_json(folder / f"{split.name}.json")}
    return [_sample(row, field_of(official, row["image"], f"{split.name}.json")) for row in rows]


def _sample(row: Row, annotation: Row) -> Sample:
    humans = [human["answer"] for human in annotation["answers"]] if "answers" in annotation else None
    key = str(row["question_id"])
    return Sample(row["question_id"], (key,), humans, {"type": annotation.get("answer_type")}, row["image"])


def score(sample: Sample) -> Score:
    return scored(sample, m4c, lambda text: m4c_accuracy(text, sample.truth))


def aggregate(scores: Sequence[Score]) -> dict[str, Any]:
    return accuracy(scores, "type")


def upload_rows(samples: Sequence[Sample]) -> list[Row]:
    """The server's list, of every question. Raises ValueError when one has no answer: the server rejects such files."""
    if lacking := [one for one in samples if one.text is None]:
        raise ValueError(
            f"{len(lacking)} of {len(samples)} questions have no answer (first: {lacking[0].question_id}); VizWiz's "
            f"server needs all answers, so finish the run"
        )
    return [{"image": one.extra, "answer": m4c(one.text or "")} for one in samples]


def export(folder: Path, split: Split, samples: Sequence[Sample], stem: Path) -> Path:
    file = stem.with_name(stem.name + ".upload.json")
    write_rows(upload_rows(samples), file)
    return file


BENCHMARK = Benchmark(
    name="vizwiz",
    title="VizWiz",
    folders=("vizwiz",),
    splits=(TEST, VAL),
    metric="accuracy",
    reported="accuracy on test-dev, by the server",
    paper=50.0,
    build=build,
    load=load,
    score=score,
    aggregate=aggregate,
    export=export,
)
