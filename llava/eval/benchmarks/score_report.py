"""Reports of scores: a table, a file with one line per question, and warnings about mismatches."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from llava.eval.benchmarks.contract import Benchmark
from llava.eval.benchmarks.join import Join
from llava.eval.sample import Score

_SHOWN = 3
_LONGEST_PART = 30  # rows; longer lists are in the JSON file only


def table(bench: Benchmark, summary: Mapping[str, Any]) -> str:
    """The summary as text; "-" for missing values."""
    labels = f" ({'; '.join(summary['labels'])})" if summary["labels"] else ""
    lines = [f"{bench.title}, {summary['split']}: {bench.metric} {shown(summary['main'])}{labels}"]
    for heading, parts in summary["parts"].items():
        for name, part in list(parts.items())[:_LONGEST_PART]:
            lines.append(f"  {heading + ' ' + name:40} {shown(part['value']):>9}  n={part['n']}")
    lines.append(f"  {summary['n']} scored, {summary['missing']} missing")
    return "\n".join(lines)


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def warnings(joined: Join, subset: bool) -> list[str]:
    """Warnings about mismatches, one line each. subset: the answers are for a subset, so missing ones are expected."""
    said = []
    for name, ids, silent in (
        ("questions have no answer", joined.missing, subset),
        ("answers belong to no question", joined.unknown, False),
    ):
        if ids and not silent:
            said.append(f"{len(ids)} {name} (first: {', '.join(map(str, ids[:_SHOWN]))})")
    if joined.repeated:
        said.append(f"{joined.repeated} answers stand in the file more than once")
    return said


def items(joined: Join, scores: Sequence[Score]) -> str:
    """The questions as csv: id, answer, parsed answer, truth, score (empty if missing), parts."""
    headings = list(dict.fromkeys(heading for one in scores for heading in one.parts))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["question_id", "text", "parsed", "truth", "value", *headings])
    for sample, one in zip(joined.samples, scores, strict=True):
        parts = [one.parts.get(heading) for heading in headings]
        writer.writerow([one.question_id, sample.text, one.parsed, one.truth, one.value, *parts])
    return text.getvalue()
