"""Judge video answers with the flags and files of Video-LLaVA's program, by any judge.

    python -m llava.eval.video.eval_video_qa --pred_path merge.jsonl --output_dir judged --output_json results.json \\
        --gt_file_answers test_a.json --api_base URL

Without --gt_file_answers the truths of the prediction file are used. Files that Video-LLaVA's program wrote on several
devices have wrong ones, so give this flag. Replies are stored in `<output_dir>/judge.jsonl`, so that a killed run can
be continued. The last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowcut.cli.command_line import Parser, program
from llava.eval.benchmarks import video_qa
from llava.eval.benchmarks.score_report import shown
from llava.eval.files import field_of, read_rows, write_json
from llava.eval.judge import review
from llava.eval.judge import settings as judge_settings
from llava.eval.sample import Sample
from llava.given import home_path


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--pred_path", type=Path, required=True, help="JSON lines of id, question, answer, pred")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the judge's replies")
    parser.add_argument("--output_json", type=Path, required=True, help="verdicts to write: id -> [verdict, question]")
    parser.add_argument(
        "--gt_file_answers", type=Path, help="test_a.json; its truths replace those of the prediction file"
    )
    parser.add_argument("--api_base", help="same as --judge-base-url")
    parser.add_argument("--api_key", help="the key itself; --judge-key-env hides it from the list of processes")
    parser.add_argument("--num_tasks", type=int, help="same as --judge-workers")
    judge_settings.add_arguments(parser)
    return parser


def settings_of(args: argparse.Namespace) -> judge_settings.JudgeSettings:
    args.judge_base_url = args.judge_base_url or args.api_base
    args.judge_workers = args.num_tasks or args.judge_workers
    settings = judge_settings.settings_of(args)
    if not settings.judges:
        raise ValueError(f"no judge was given; {judge_settings.HOW}")
    if args.api_key and settings.endpoint:
        settings = replace(settings, endpoint=replace(settings.endpoint, key=args.api_key))
    return settings


def samples_of(rows: Sequence[dict[str, Any]], truths: dict[str, str | None] | None = None) -> list[Sample]:
    """Prediction lines as answered questions. truths: by question id, instead of the lines' own.

    Raises ValueError, one line, for an incomplete line, and for an id with two different answers.
    """
    samples: dict[str, Sample] = {}
    for row in rows:
        name, question, own, text = (
            field_of(row, key, "the prediction file") for key in ("id", "question", "answer", "pred")
        )
        truth = own if truths is None else truths.get(str(name))
        sample = Sample(name, (str(name),), truth, extra=(question, truth not in (None, own)), text=text)
        if samples.setdefault(str(name), sample).text != text:
            raise ValueError(f"id {name} has two answers; give a file with one line per id")
    return list(samples.values())


def combined(samples: Sequence[Sample]) -> dict[str, list[dict[str, Any]]]:
    """Video-LLaVA's file of verdicts; from the first of several runs."""
    return {
        str(one.question_id): [
            {"pred": one.verdicts[0].value[0], "score": one.verdicts[0].value[1]},
            {"q": one.extra[0], "a": one.truth, "pred": one.text},
        ]
        for one in samples
        if one.verdicts and one.verdicts[0].value is not None
    }


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    settings = settings_of(args)
    truths = video_qa.truths(home_path(args.gt_file_answers)) if args.gt_file_answers else None
    samples = samples_of(read_rows(home_path(args.pred_path), "answers"), truths)
    journal = home_path(args.output_dir) / "judge.jsonl"
    judged = review.apply(video_qa.JUDGE, samples, settings, journal, progress=True)
    summary = video_qa.aggregate([video_qa.score(sample) for sample in judged.samples])
    labels = summary["labels"] + judged.labels
    if judged.record:
        verdicts = combined(judged.samples)
        write_json(verdicts, home_path(args.output_json))
        said = [verdict["pred"] for verdict, _ in verdicts.values()]
        print(f"Yes count: {said.count('yes')}\nNo count: {said.count('no')}")
    print(f"Accuracy: {shown(summary['main'])} %")
    print(f"Average score: {shown(summary['parts']['score']['0 to 5']['value'])}")
    print("; ".join(labels), file=sys.stderr)
    print(
        json.dumps({"benchmark": "video_qa", **summary, "labels": labels, "judge": judged.record}, ensure_ascii=False)
    )


if __name__ == "__main__":
    main()
