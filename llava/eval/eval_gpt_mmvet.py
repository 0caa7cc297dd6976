"""Grade MM-Vet's answers with the flags and files of Video-LLaVA's evaluator, by any judge.

    python -m llava.eval.eval_gpt_mmvet --mmvet_path mm-vet --ckpt_name llava-v1.5-7b --result_path results \\
        --judge-base-url URL --judge-runs 5

Reads `<result_path>/<ckpt_name>.json` (`convert_mmvet_for_eval.py` writes it); writes next to it the grades of each
question and two tables, by capability and by combination of capabilities. The last line of stdout is one JSON document.
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

from flowcut.cli.command_line import Parser, program
from llava.eval.benchmarks import mmvet
from llava.eval.benchmarks.contract import by_id
from llava.eval.benchmarks.join import Join, join
from llava.eval.files import read_json, write_atomic, write_json
from llava.eval.judge import review
from llava.eval.judge import settings as judge_settings
from llava.eval.sample import Sample
from llava.given import home_path


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--mmvet_path", type=Path, required=True, help="folder of mm-vet.json")
    parser.add_argument("--ckpt_name", required=True, help="name of the answers, without .json")
    parser.add_argument("--result_path", type=Path, required=True, help="folder of the answers, and for the grades")
    judge_settings.add_arguments(parser)
    return parser


def read(mmvet_path: Path, results: Path) -> Join:
    """The questions with a results file's answers. Raises ValueError when the files do not belong together."""
    said = read_json(results)
    if not isinstance(said, dict):
        raise ValueError(f"{results} is not a JSON object; give what convert_mmvet_for_eval.py writes")
    answers = [{"question_id": name, "text": text} for name, text in said.items()]
    return join(mmvet.samples_of(mmvet.official_rows(mmvet_path)), answers, by_id)


def grades(samples: Sequence[Sample]) -> dict[str, dict[str, list[Any]]]:
    """`v1_<number>` -> who graded, the last reply and the grade, one of each a run."""
    found = {}
    for sample in samples:
        given = [verdict for verdict in sample.verdicts if verdict.reply is not None]
        if given:
            found[str(sample.keys[1])] = {
                "model": [verdict.reply.model for verdict in given if verdict.reply],
                "content": [verdict.reply.text for verdict in given if verdict.reply],
                "score": [verdict.value for verdict in given],
            }
    return found


def table(name: str, parts: dict[str, dict[str, Any]], total: dict[str, Any]) -> str:
    """csv of one line: the parts, largest first, then total, its deviation over the runs, the runs; one decimal."""
    ordered = sorted(parts, key=lambda part: -parts[part]["n"])
    cells = [_one_decimal(parts[part]["value"]) for part in ordered] + [_one_decimal(total["value"])]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["", *ordered, "total", "std", "runs"])
    writer.writerow([name, *cells, _one_decimal(total["std"]), [round(run, 1) for run in total["runs"]]])
    return text.getvalue()


def _one_decimal(value: float | None) -> float | str:
    return "-" if value is None else round(value, 1)


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    folder: Path = home_path(args.result_path)
    settings = judge_settings.settings_of(args)
    if not settings.judges:
        raise ValueError(f"no judge was given; {judge_settings.HOW}")
    joined = read(home_path(args.mmvet_path), folder / f"{args.ckpt_name}.json")
    journal = folder / f"{args.ckpt_name}.judge.jsonl"
    judged = review.apply(mmvet.BENCHMARK.judge, joined.samples, settings, journal, progress=True)
    summary = mmvet.aggregate([mmvet.score(sample) for sample in judged.samples])
    if judged.record:
        stem, runs = f"{args.ckpt_name}_{judged.record['model'].replace('/', '_')}", f"{settings.runs}runs"
        total = summary["parts"]["total"]["over runs"]
        write_json(grades(judged.samples), folder / f"{stem}-grade-{runs}.json")
        for part, file in (("capability", "cap-score"), ("combination", "cap-int-score")):
            text = table(args.ckpt_name, summary["parts"][part], total)
            write_atomic(folder / f"{stem}-{file}-{runs}.csv", text)
            print(text)
    print("; ".join(judged.labels), file=sys.stderr)
    print(json.dumps({"benchmark": "mmvet", **summary, "labels": judged.labels, "judge": judged.record}))


if __name__ == "__main__":
    main()
