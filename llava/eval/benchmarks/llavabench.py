"""LLaVA-Bench (In-the-Wild): 60 open questions; a language model scores the answer and GPT-4's, 1 to 10 each.

The number is a ratio of means, the model's over the reference's. The published judge, gpt-4-0314, is retired: compare
only scores of the same judge. The prompt is our own (`llava/eval/table/rule.json`); `--judge-prompt` takes LLaVA's
file. There is no offline metric.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from llava.eval.benchmarks.contract import Benchmark, Need, Split
from llava.eval.benchmarks.runs import mean_of, over_runs, values_of
from llava.eval.benchmarks.tally import by_part, counts
from llava.eval.files import Row, field_of, read_rows
from llava.eval.judge.protocol import JudgeProtocol, Message
from llava.eval.sample import Sample, Score

SOURCE = "https://huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild"
CATEGORIES = ("conv", "detail", "complex")
UNREADABLE = [-1.0, -1.0]  # LLaVA's value for a review without scores; it is included in the means
BEST = 10

SYSTEM = "You check how good answers are, helpfully and with precision."
RULES_FILE = Path(__file__).parents[1] / "table" / "rule.json"
"""Our own rules for judges, in the layout of LLaVA's file: category -> {"role", "prompt"}."""
_RULES = json.loads(RULES_FILE.read_text("utf-8"))

TEST = Split(
    "test",
    "questions.jsonl",
    ("images",),
    (
        Need(("questions.jsonl",), "questions", SOURCE),
        Need(("context.jsonl",), "descriptions of the pictures for the judge", SOURCE),
        Need(("answers_gpt4.jsonl",), "reference answers", SOURCE),
        Need(("images",), "pictures", SOURCE),
    ),
    published=60,
)


def build(folder: Path, split: Split) -> list[Row]:
    return read_rows(folder / split.question_file)


def load(folder: Path, split: Split, rows: list[Row]) -> list[Sample]:
    references = read_rows(folder / "answers_gpt4.jsonl", "reference")
    return samples_of(rows, read_rows(folder / "context.jsonl", "context"), references)


def samples_of(questions: Sequence[Row], contexts: Sequence[Row], references: Sequence[Row]) -> list[Sample]:
    """The questions with the reference answer as truth, found by id; `extra`: (question, description).

    Raises ValueError, one line, for a question without reference, description or known category.
    """
    said = {str(field_of(row, "question_id", "the references")): row for row in references}
    described = {field_of(row, "image", "context.jsonl"): description(row) for row in contexts}
    samples = []
    for row in questions:
        name, category = str(row["question_id"]), row.get("category")
        if name not in said or row["image"] not in described or category not in CATEGORIES:
            raise ValueError(
                f"question {name} (picture {row['image']}, category {category}) has no reference, no description or "
                f"none of the categories {', '.join(CATEGORIES)}; take all files of one release"
            )
        extra = (row["text"], described[row["image"]])
        samples.append(Sample(row["question_id"], (name,), said[name]["text"], {"category": category}, extra))
    return samples


def description(context: Row) -> str:
    """A picture's description: one text, or a list of sentences, one per line."""
    caption = field_of(context, "caption", "context.jsonl")
    return caption if isinstance(caption, str) else "\n".join(caption)


def messages(sample: Sample, texts: Mapping[str, str], attempt: int) -> list[Message]:
    """Description, question, both answers, the category's rule, in LLaVA's order and layout."""
    question, context = sample.extra
    sections = [f"[Context]\n{context}", f"[Question]\n{question}"]
    for number, answer in enumerate((sample.truth, sample.text or ""), start=1):
        sections += [f"[Assistant {number}]\n{answer}", f"[End of Assistant {number}]"]
    rule = texts[f"llava_bench_{sample.parts['category']}"]
    content = "\n\n".join([*sections, f"[System]\n{rule}", ""])
    return [{"role": "system", "content": texts["system"]}, {"role": "user", "content": content}]


def parse(reply: str) -> list[float] | None:
    """[reference's score, model's score]: exactly two numbers on the first line, one comma or space between."""
    numbers = reply.split("\n")[0].replace(",", " ").split(" ")
    try:
        pair = [float(number) for number in numbers]
    except ValueError:
        return None
    return pair if len(pair) == 2 and all(map(math.isfinite, pair)) else None


def score(sample: Sample) -> Score:
    """The model's mean score over the judge's runs, as a share of 10; None without a judge. An unreadable review counts
    as -1 of 10, as in LLaVA."""
    if sample.text is None:
        return Score(sample.question_id, None, None, sample.truth, sample.parts, answered=False)
    reviews = values_of(sample)
    value = mean_of([None if review is None else review[1] / BEST for review in reviews])
    return Score(sample.question_id, value, None, sample.truth, {**sample.parts, "reviews": reviews})


def ratio(reviews: Sequence[Sequence[float]]) -> float | None:
    """100 times the model's mean score over the reference's; None without scores, or if the latter is not positive."""
    if not reviews:
        return None
    reference, model = (fmean(review[place] for review in reviews) for place in (0, 1))
    return 100 * model / reference if reference > 0 else None


def _part(scores: Sequence[Score]) -> dict[str, Any]:
    return over_runs([one.parts.get("reviews", ()) for one in scores], ratio)


def aggregate(scores: Sequence[Score]) -> dict[str, Any]:
    """The ratio over all questions and by category, averaged over the judge's runs."""
    whole = _part(scores)
    unread = sum(review == UNREADABLE for one in scores for review in one.parts.get("reviews", ()))
    return {
        "main": whole["value"],
        **counts(scores),
        "parts": {
            "category": {name: _part(own) for name, own in by_part(scores, "category").items()},
            "all": {"over runs": whole},
        },
        "labels": [f"{unread} reviews unreadable, counted as -1 -1"] if unread else [],
    }


BENCHMARK = Benchmark(
    name="llavabench",
    title="LLaVA-Bench (In-the-Wild)",
    folders=("llava-bench-in-the-wild", "llavabench"),
    splits=(TEST,),
    metric="relative score",
    reported="relative score over all questions, by gpt-4-0314",
    paper=66.9,
    program="vqa",
    max_new_tokens=1024,
    build=build,
    load=load,
    score=score,
    aggregate=aggregate,
    judge=JudgeProtocol(
        version="llavabench-own-1",
        model="gpt-4-0314",
        prompts={
            **{f"llava_bench_{category}": _RULES[f"llava_bench_{category}"]["prompt"] for category in CATEGORIES},
            "system": SYSTEM,
        },
        messages=messages,
        parse=parse,
        max_tokens=1024,
        temperature=lambda attempt: 0.2,
        attempts=1,
        fallback=UNREADABLE,
        runs=3,
    ),
)
