"""Score a benchmark's answers; offline, without a model.

    python -m llava.eval.score pope --answers-file answers.jsonl

Beside the answers it writes `<answers>.scores.csv` (a line a question), `<answers>.scores.json`, and where a server
takes one, the upload file. Answers are joined with their questions by id; what does not fit is told. A number that is
not over the published set of questions carries labels. The last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.benchmarks.contract import Benchmark, Split
from llava.eval.benchmarks.join import Join
from llava.eval.benchmarks.registry import MODULES, benchmark
from llava.eval.files import write_atomic
from llava.eval.judge import review
from llava.eval.judge import settings as judge_settings
from llava.eval.prepare import DATA
from llava.eval.sample import Score

_SHOWN = 3
_LONGEST_PART = 30  # rows; more names under one heading are left to the JSON file


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=MODULES)
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder of all benchmarks (default: {DATA})")
    parser.add_argument("--answers-file", type=Path, required=True, help="JSON lines of an answering program")
    parser.add_argument("--split", help="default: the one of the published number; a wrong name lists all")
    parser.add_argument("--subset", action="store_true", help="only a part was asked: label it, do not warn")
    judge_settings.add_arguments(parser)
    return parser


def summarise(bench: Benchmark, split: Split, joined: Join, scores: Sequence[Score], subset: bool) -> dict[str, Any]:
    """The benchmark's summary with where it comes from and what to say beside it."""
    summary = bench.aggregate(scores)
    labels = bench.labels(split, len(joined.samples), len(joined.missing), summary, subset)
    if scores and all(sample.truth is None for sample in joined.samples):
        labels.append("no public answers: upload the file")
    return {
        "benchmark": bench.name,
        "split": split.name,
        "labels": labels,
        "metric": bench.metric,
        "reported": bench.reported,
        "paper": bench.paper,
        "main": summary["main"],
        **({"ci95": summary["ci95"]} if "ci95" in summary else {}),
        "n": summary["n"],
        "missing": summary["missing"],
        "unknown": len(joined.unknown),
        "repeated": joined.repeated,
        "parts": summary["parts"],
    }


def table(bench: Benchmark, summary: dict[str, Any]) -> str:
    """The summary as text; "-" for what is missing."""
    beside = f" ({'; '.join(summary['labels'])})" if summary["labels"] else ""
    lines = [f"{bench.title}, {summary['split']}: {bench.metric} {shown(summary['main'])}{beside}"]
    for heading, parts in summary["parts"].items():
        for name, part in list(parts.items())[:_LONGEST_PART]:
            lines.append(f"  {heading + ' ' + name:40} {shown(part['value']):>9}  n={part['n']}")
    lines.append(f"  {summary['n']} scored, {summary['missing']} missing")
    return "\n".join(lines)


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def warnings(joined: Join, subset: bool) -> list[str]:
    """What did not fit, a line each."""
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
    """The questions as csv: id, what was said and understood, what is right, the value (empty if missing), parts."""
    headings = list(dict.fromkeys(heading for one in scores for heading in one.parts))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["question_id", "text", "parsed", "truth", "value", *headings])
    for sample, one in zip(joined.samples, scores, strict=True):
        parts = [one.parts.get(heading) for heading in headings]
        writer.writerow([one.question_id, sample.text, one.parsed, one.truth, one.value, *parts])
    return text.getvalue()


def export(bench: Benchmark, folder: Path, split: Split, joined: Join, stem: Path) -> str | None:
    """The upload file, where there is one to be had; says on stderr why not."""
    if bench.export is None:
        return None
    try:
        return str(bench.export(folder, split, joined.samples, stem))
    except ValueError as error:
        print(f"no upload file: {error}", file=sys.stderr)
        return None


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    bench = benchmark(args.benchmark)
    answers: Path = args.answers_file.expanduser()
    stem = answers.with_suffix("")
    try:
        split = bench.split(args.split)
        folder = bench.folder(args.data, split)
        joined = bench.read(folder, answers, split)
        settings = judge_settings.settings_of(args)
        judged = review.apply(bench.judge, joined.samples, settings, stem.with_name(stem.name + ".judge.jsonl"), True)
        joined = joined._replace(samples=judged.samples)
        scores = [bench.score(sample) for sample in joined.samples]
    except ValueError as error:
        sys.exit(f"error: {error}")
    for warning in warnings(joined, args.subset):
        print(f"warning: {warning}", file=sys.stderr)
    summary = summarise(bench, split, joined, scores, args.subset)
    summary["labels"] += judged.labels
    summary["judge"] = judged.record
    summary["upload"] = export(bench, folder, split, joined, stem)
    document = json.dumps(summary, ensure_ascii=False)
    write_atomic(stem.with_name(stem.name + ".scores.csv"), items(joined, scores))
    write_atomic(stem.with_name(stem.name + ".scores.json"), document + "\n")
    print(table(bench, summary))
    print(document)


if __name__ == "__main__":
    main()
