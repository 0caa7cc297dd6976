"""POPE: is an object in the picture, yes or no; the mean of three F1. Scored offline.

The paper's random split is that of POPE's commit e3e3926 with 2,910 questions; the current one has 3,000.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from llava.eval.benchmarks.answer_formats import SHORT_ANSWER, short_answer
from llava.eval.benchmarks.contract import Benchmark, Need, Split
from llava.eval.benchmarks.tally import DIGITS, by_part, counts, mean
from llava.eval.files import Row, field_of, read_rows
from llava.eval.sample import Sample, Score, scored

CATEGORIES = ("adversarial", "random", "popular")  # LLaVA's order
SOURCE = "https://github.com/AoiDragon/POPE/tree/e3e39262c85a6a83f26cf5094022a782cb0df58d/output/coco"
_ID_STEP = 10_000_000  # LLaVA numbers each category from its own multiple of this
_NO_WORDS = frozenset({"No", "not", "no"})

TEST = Split(
    "test",
    "llava_pope_test.jsonl",
    ("val2014",),
    (
        *(Need((f"coco/coco_pope_{name}.json",), f"{name} questions and labels", SOURCE) for name in CATEGORIES),
        Need(
            ("val2014",),
            "COCO val2014 pictures",
            "http://images.cocodataset.org/zips/val2014.zip",
            asking=True,
            gigabytes=6.5,
        ),
    ),
    published=8910,
)


def official_rows(folder: Path) -> dict[str, list[Row]]:
    """Category -> its official rows (question_id, image, text, label), ignoring other files in the folder.

    Raises ValueError when the folder has no `coco_pope_<category>.json` at all.
    """
    files = {file.stem.removeprefix("coco_pope_"): file for file in sorted(folder.glob("coco_pope_*.json"))}
    if not files:
        raise ValueError(f"{folder} has no coco_pope_*.json; get POPE's output/coco from {SOURCE}")
    return {category: read_rows(file, "annotation") for category, file in files.items()}


def build(folder: Path, split: Split) -> list[Row]:
    official = official_rows(folder / "coco")
    return [
        {
            "question_id": place * _ID_STEP + field_of(row, "question_id", category),
            "image": field_of(row, "image", category),
            "text": short_answer(field_of(row, "text", category)),
            "category": category,
        }
        for place, category in enumerate(CATEGORIES)
        for row in official[category]
    ]


def bare(text: str) -> str:
    """A question without the sentence that asks for a short answer."""
    return text.removesuffix(SHORT_ANSWER).strip()


def samples_of(official: dict[str, list[Row]], rows: Sequence[Row]) -> list[Sample]:
    """The questions with their labels, found by category, picture and text.

    Raises ValueError for a question that is not in the annotations: the files are then of different releases.
    """
    labels = {
        (category, row["image"], row["text"].strip()): row["label"]
        for category in official
        for row in official[category]
    }
    samples = []
    for row in rows:
        place = (row["category"], row["image"], bare(row["text"]))
        if place not in labels:
            raise ValueError(
                f"question {row['question_id']} ({bare(row['text'])!r}, {row['category']}) is not in coco_pope_*.json; "
                f"take question file and annotations of the same POPE release"
            )
        key = (str(row["question_id"]), bare(row["text"]))
        samples.append(Sample(row["question_id"], (key,), labels[place], {"category": row["category"]}))
    return samples


def load(folder: Path, split: Split, rows: list[Row]) -> list[Sample]:
    return samples_of(official_rows(folder / "coco"), rows)


def answer_key(row: Row) -> Hashable:
    if "prompt" not in row:
        raise ValueError(f"the answer to {row['question_id']} has no prompt; POPE's are joined by id and wording")
    return str(row["question_id"]), bare(row["prompt"])


def parse(text: str) -> str:
    """yes or no: the text before the first period, commas deleted, split at single spaces; everything else is yes."""
    words = text.partition(".")[0].replace(",", "").split(" ")
    return "no" if _NO_WORDS.intersection(words) else "yes"


def score(sample: Sample) -> Score:
    return scored(sample, parse)


def measures(scores: Sequence[Score]) -> dict[str, Any]:
    """Percentages with yes as the positive class: f1, accuracy, precision, recall, yes_ratio (of answers); TP ... FN.

    A ratio with denominator 0 is None.
    """
    pairs = [(one.parsed, one.truth) for one in scores if one.value is not None]
    hits, alarms = pairs.count(("yes", "yes")), pairs.count(("yes", "no"))
    passes, misses = pairs.count(("no", "no")), pairs.count(("no", "yes"))
    return {
        "f1": _ratio(2 * hits, 2 * hits + alarms + misses),
        "accuracy": _ratio(hits + passes, len(pairs)),
        "precision": _ratio(hits, hits + alarms),
        "recall": _ratio(hits, hits + misses),
        "yes_ratio": _ratio(hits + alarms, len(pairs)),
        "TP": hits,
        "FP": alarms,
        "TN": passes,
        "FN": misses,
        "n": len(pairs),
    }


def _ratio(part: int, whole: int) -> float | None:
    return round(100 * part / whole, DIGITS) if whole else None


def aggregate(scores: Sequence[Score]) -> dict[str, Any]:
    """The mean of the categories' F1; with each category's measures, F1 as its value."""
    categories = {name: measures(own) for name, own in by_part(scores, "category").items()}
    parts = {name: {"value": own["f1"], **own} for name, own in categories.items()}
    return {
        "main": mean(own["f1"] for own in categories.values()),
        **counts(scores),
        "parts": {"category": parts, "accuracy": {"mean": _mean_accuracy(categories)}},
    }


def _mean_accuracy(categories: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "value": mean(own["accuracy"] for own in categories.values()),
        "n": sum(own["n"] for own in categories.values()),
    }


BENCHMARK = Benchmark(
    name="pope",
    title="POPE",
    folders=("pope",),
    splits=(TEST,),
    metric="mean F1",
    reported="mean of the F1 of the random (2,910 questions), popular and adversarial splits",
    paper=85.9,
    build=build,
    load=load,
    score=score,
    aggregate=aggregate,
    answer_key=answer_key,
)
