"""From an answers file to a benchmark's number, its interval and the files next to the answers; no model is loaded."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llava.eval.benchmarks.contract import Benchmark, Split
from llava.eval.benchmarks.join import Join
from llava.eval.benchmarks.score_report import items, table, warnings
from llava.eval.benchmarks.tally import DIGITS
from llava.eval.files import Row, write_atomic
from llava.eval.judge import review
from llava.eval.judge.settings import JudgeSettings
from llava.eval.metrics.intervals import interval_of
from llava.eval.sample import Score


class Scored(NamedTuple):
    """summary: the JSON document, as in the file. table: the same as text. notes: warnings, one line each."""

    summary: dict[str, Any]
    table: str
    notes: list[str]


def score_answers(
    bench: Benchmark,
    split: Split,
    folder: Path,
    answers: Path,
    judge: JudgeSettings | None = None,
    subset: bool = False,
    progress: bool = False,
) -> Scored:
    """Score an answers file; write `<answers>.scores.csv`, `<answers>.scores.json` and, for servers, an upload file.

    folder: the benchmark's. judge: for answers that need a judge; with None they have no score. subset: the answers are
    for a subset. progress: show a bar on stderr during judging.

    Raises ValueError, one line, for files that are missing or do not belong together, and when the judge failed.
    """
    stem = answers.with_suffix("")
    joined = bench.read(folder, answers, split)
    judged = review.apply(
        bench.judge, joined.samples, judge or JudgeSettings(), stem.with_name(stem.name + ".judge.jsonl"), progress
    )
    joined = joined._replace(samples=judged.samples)
    scores = [bench.score(sample) for sample in joined.samples]
    notes = [f"warning: {warning}" for warning in warnings(joined, subset)]
    number = bench.aggregate(scores)
    ends = interval(bench, split, folder, scores, number, judged=bool(judged.record))
    summary = {
        **_document(bench, split, joined, number, ends, subset),
        "judge": judged.record,
        "upload": None,
    }
    summary["labels"] += judged.labels
    if bench.export is not None:
        try:
            summary["upload"] = str(bench.export(folder, split, joined.samples, stem))
        except ValueError as error:
            notes.append(f"no upload file: {error}")
    write_atomic(stem.with_name(stem.name + ".scores.csv"), items(joined, scores))
    write_atomic(stem.with_name(stem.name + ".scores.json"), json.dumps(summary, ensure_ascii=False) + "\n")
    return Scored(summary, table(bench, summary), notes)


def _document(
    bench: Benchmark, split: Split, joined: Join, number: Mapping[str, Any], ends: Mapping[str, Any], subset: bool
) -> dict[str, Any]:
    """The benchmark's summary with its origin and labels."""
    labels = bench.labels(split, len(joined.samples), len(joined.missing), number, subset)
    if joined.samples and all(sample.truth is None for sample in joined.samples):
        labels.append("no public answers: upload the file")
    return {
        "benchmark": bench.name,
        "split": split.name,
        "labels": labels,
        "metric": bench.metric,
        "reported": bench.reported,
        "paper": bench.paper,
        "main": number["main"],
        **ends,
        "n": number["n"],
        "missing": number["missing"],
        "unknown": len(joined.unknown),
        "repeated": joined.repeated,
        "parts": number["parts"],
    }


def interval(
    bench: Benchmark,
    split: Split,
    folder: Path,
    scores: Sequence[Score],
    number: Mapping[str, Any],
    judged: bool = False,
) -> dict[str, Any]:
    """`ci95`, the ends of the 95 % interval, and `ci95_over`, the resampled items: scenes, pictures or questions.

    number: the benchmark's aggregate of the scores, whose own interval is used if it has one. judged: the number
    depends on a judge's verdicts, whose variance the interval would ignore. Both values are None without an interval.
    """
    if "ci95" in number:
        return {"ci95": number["ci95"], "ci95_over": "scenes"}
    if judged or number["main"] is None:
        return {"ci95": None, "ci95_over": None}
    pictures = _pictures(bench, split, bench.rows(folder, split))
    groups: list[Hashable] = [pictures.get(str(one.question_id), (one.question_id,)) for one in scores]
    found = interval_of(scores, groups, number["main"], lambda part: bench.aggregate(part)["main"])
    if found is None:
        return {"ci95": None, "ci95_over": None}
    drawn = "pictures" if all(str(one.question_id) in pictures for one in scores) else "questions"
    return {"ci95": [round(end, DIGITS) for end in found], "ci95_over": drawn}


def _pictures(bench: Benchmark, split: Split, rows: Sequence[Row]) -> dict[str, Hashable]:
    """Question id -> its picture, or where pictures are in the question file, the questions that belong together."""
    named: dict[str, Hashable] = {}
    for row in rows:
        picture = row.get("image") if split.images else None
        named[str(row.get("question_id", row.get("id")))] = str(picture) if picture else str(bench.group(row))
    return named
