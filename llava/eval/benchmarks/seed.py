"""SEED-Bench (v1): multiple choice over pictures and middle frames of videos; exact equality of answer and letter.

The published number is the total over both. Without the frames, use the split `image`. Scored offline.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.benchmarks.answer_formats import multiple_choice
from llava.eval.benchmarks.contract import Benchmark, Need, Split
from llava.eval.benchmarks.tally import accuracy
from llava.eval.files import Row, field_of, read_json, write_rows
from llava.eval.sample import Sample, Score, scored

SOURCE = "https://huggingface.co/datasets/AILab-CVC/SEED-Bench"
ANNOTATION = "SEED-Bench.json"
FRAMES = "SEED-Bench-video-image"
PICTURES = "SEED-Bench-image"
_NEW = "video items changed; the old file is in its history"

_OFFICIAL = (
    Need((ANNOTATION,), "questions and answers", f"{SOURCE} ({_NEW})", gigabytes=0.009),
    Need((PICTURES,), "pictures", f"{SOURCE} ({PICTURES}.zip)", asking=True, gigabytes=1.7),
)
ALL = Split(
    "all",
    "llava-seed-bench.jsonl",
    (".",),
    (
        *_OFFICIAL,
        Need(
            (FRAMES,),
            "videos' middle frames, <type>_<question>.png; not for --split image",
            f"{SOURCE} (the videos, v1_video.zip in parts)",
            asking=True,
        ),
    ),
    published=19242,
)
IMAGE = Split("image", "llava-seed-bench_image.jsonl", (".",), _OFFICIAL, label="image only")


def official(annotation: Row, kind: str) -> list[Row]:
    """The questions of one kind (all, image, video)."""
    rows = field_of(annotation, "questions", ANNOTATION)
    return [row for row in rows if kind in ("all", row["data_type"])]


def image_of(row: Row) -> str:
    if row["data_type"] == "image":
        return f"{PICTURES}/{row['data_id']}"
    return f"{FRAMES}/{row['question_type_id']}_{row['question_id']}.png"


def build(folder: Path, split: Split) -> list[Row]:
    return [
        {
            "question_id": _number(row["question_id"]),
            "image": image_of(row),
            "text": multiple_choice(row["question"], [row[f"choice_{letter}"] for letter in "abcd"]),
            "category": row["question_type_id"],
        }
        for row in official(read_json(folder / ANNOTATION), split.name)
    ]


def _number(question_id: Any) -> Any:
    """As in LLaVA: a number if the id is one."""
    return int(question_id) if str(question_id).isdecimal() else question_id


def samples_of(file: Path, kind: str) -> list[Sample]:
    """The questions of one kind in the official annotation file."""
    annotation = read_json(file)
    names = {number: name for name, number in annotation.get("question_type", {}).items()}
    return [
        Sample(
            row["question_id"],
            (str(_number(row["question_id"])),),
            row["answer"],
            {"kind": row["data_type"], "type": names.get(row["question_type_id"], row["question_type_id"])},
        )
        for row in official(annotation, kind)
    ]


def load(folder: Path, split: Split, rows: list[Row]) -> list[Sample]:
    return samples_of(folder / ANNOTATION, split.name)


def score(sample: Sample) -> Score:
    return scored(sample, str)


def aggregate(scores: Sequence[Score]) -> dict[str, Any]:
    summary = accuracy(scores, "kind", "type")
    answered = {kind for kind, part in summary["parts"]["kind"].items() if part["n"]}
    asked = set(summary["parts"]["kind"])
    # A split with pictures only has its own label; here answers about frames are missing.
    return {**summary, "labels": [f"{kind} only" for kind in sorted(answered) if answered != asked]}


def upload_rows(samples: Sequence[Sample]) -> list[Row]:
    """The leaderboard's rows, for the questions with an answer."""
    return [{"question_id": one.question_id, "prediction": one.text} for one in samples if one.text is not None]


def export(folder: Path, split: Split, samples: Sequence[Sample], stem: Path) -> Path:
    file = stem.with_name(stem.name + ".upload.jsonl")
    write_rows(upload_rows(samples), file)
    return file


BENCHMARK = Benchmark(
    name="seed",
    title="SEED-Bench",
    folders=("seed_bench", "seed"),
    splits=(ALL, IMAGE),
    metric="total accuracy",
    reported="accuracy over pictures and videos together",
    paper=59.3,
    build=build,
    load=load,
    score=score,
    aggregate=aggregate,
    export=export,
)
