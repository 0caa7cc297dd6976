"""VQAv2: short answers, ten human answers each. The published number is the server's (test-dev).

The split `val` (val2014, labelled) is scored here with the official rules. For the test splits, the upload file lists
all ids of test2015; questions without an answer have "".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.benchmarks.answer_formats import short_answer
from llava.eval.benchmarks.contract import Benchmark, Need, Split
from llava.eval.benchmarks.tally import accuracy
from llava.eval.files import Row, field_of, read_json, read_rows, write_rows
from llava.eval.metrics.vqa_normalise import m4c, official_accuracy, official_answer
from llava.eval.sample import Sample, Score, scored

SITE = "https://visualqa.org/download.html"
COCO = "http://images.cocodataset.org/zips"
ANNOTATION = "v2_mscoco_val2014_annotations.json"
ALL_IDS = "llava_vqav2_mscoco_test2015.jsonl"
_DIGITS = 2  # as the official scorer rounds


def _official(name: str) -> str:
    return f"v2_OpenEnded_mscoco_{name}_questions.json"


def _split(name: str, official: str, year: str, published: int | None, label: str = "") -> Split:
    question_file = f"llava_vqav2_mscoco_{official}.jsonl"
    needs = [
        Need((question_file, _official(official)), "questions", f"{SITE} (or LLaVA's eval.zip)"),
        Need((year,), "COCO pictures", f"{COCO}/{year}.zip", asking=True, gigabytes=13 if year == "test2015" else 6.5),
    ]
    if name == "val":
        needs.append(Need((ANNOTATION,), "human answers", SITE))
    else:
        all_ids = (ALL_IDS, _official("test2015"))
        needs.append(Need(all_ids, "all ids of test2015, for the upload file", SITE, optional=True))
    return Split(name, question_file, (year,), tuple(needs), published, label)


TEST_DEV = _split("test-dev", "test-dev2015", "test2015", 107394)
VAL = _split("val", "val2014", "val2014", 214354, "val")
TEST = _split("test", "test2015", "test2015", None, "all of test2015")


def _name(split: Split) -> str:
    return split.question_file.removeprefix("llava_vqav2_mscoco_").removesuffix(".jsonl")


def build(folder: Path, split: Split) -> list[Row]:
    file = _official(_name(split))
    coco = split.images[0]
    return [
        {
            "question_id": row["question_id"],
            "image": f"COCO_{coco}_{row['image_id']:012d}.jpg",
            "text": short_answer(row["question"]),
            "category": "default",
        }
        for row in field_of(read_json(folder / file), "questions", file)
    ]


def load(folder: Path, split: Split, rows: list[Row]) -> list[Sample]:
    if split.name != "val":
        return [_sample(row, None) for row in rows]
    listed = field_of(read_json(folder / ANNOTATION), "annotations", ANNOTATION)
    humans = {str(row["question_id"]): row for row in listed}
    return [_sample(row, field_of(humans, str(row["question_id"]), ANNOTATION)) for row in rows]


def _sample(row: Row, annotation: Row | None) -> Sample:
    key = (str(row["question_id"]),)
    if annotation is None:
        return Sample(row["question_id"], key)
    truth = [(human["answer"], human.get("answer_id")) for human in annotation["answers"]]
    parts = {"answer": annotation.get("answer_type"), "question": annotation.get("question_type")}
    return Sample(row["question_id"], key, truth, parts)


def score(sample: Sample) -> Score:
    return scored(sample, official_answer, lambda text: official_accuracy(text, sample.truth))


def aggregate(scores: Sequence[Score]) -> dict[str, Any]:
    """Overall, by answer type and by question type, rounded to two digits as the official scorer does."""
    summary = accuracy(scores, "answer", "question")
    for parts in summary["parts"].values():
        for part in parts.values():
            part["value"] = _rounded(part["value"])
    return {**summary, "main": _rounded(summary["main"])}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)


def upload_rows(question_ids: Sequence[int], answers: Mapping[int, str]) -> list[Row]:
    """The server's list: every id, normalised answers, "" for a question without an answer."""
    return [{"question_id": one, "answer": m4c(answers[one]) if one in answers else ""} for one in question_ids]


def upload_ids(folder: Path) -> list[int]:
    """Every id that an upload has to list. Raises ValueError without test2015's question file in either form."""
    if (folder / ALL_IDS).is_file():
        return [row["question_id"] for row in read_rows(folder / ALL_IDS)]
    if (folder / _official("test2015")).is_file():
        return [row["question_id"] for row in read_json(folder / _official("test2015"))["questions"]]
    raise ValueError(f"{folder} lacks {ALL_IDS}, and the server needs answers for its ids; get it from {SITE}")


def export(folder: Path, split: Split, samples: Sequence[Sample], stem: Path) -> Path:
    ids = [int(one.question_id) for one in samples] if split.name == "val" else upload_ids(folder)
    file = stem.with_name(stem.name + ".upload.json")
    write_rows(upload_rows(ids, {int(one.question_id): one.text for one in samples if one.text is not None}), file)
    return file


BENCHMARK = Benchmark(
    name="vqav2",
    title="VQAv2",
    folders=("vqav2",),
    splits=(TEST_DEV, VAL, TEST),
    metric="accuracy",
    reported="accuracy on test-dev, by the server",
    paper=78.5,
    build=build,
    load=load,
    score=score,
    aggregate=aggregate,
    export=export,
)
