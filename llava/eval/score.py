"""Score a benchmark's answers; offline, without a model.

    python -m llava.eval.score pope --answers-file answers.jsonl

Next to the answers it writes `<answers>.scores.csv` (one line per question), `<answers>.scores.json`, and the upload
file for benchmarks with a server. Answers are joined with their questions by id; mismatches are reported. A number that
is not over the published set of questions has labels; `ci95` is its 95 % interval, bootstrapped over `ci95_over`.
The last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from flowcut.cli.command_line import Parser, program
from llava.eval.benchmarks.registry import DATA, MODULES, benchmark
from llava.eval.benchmarks.scoring import Scored, score_answers
from llava.eval.judge import settings as judge_settings
from llava.given import home_path


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("benchmark", choices=MODULES)
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder of all benchmarks (default: {DATA})")
    parser.add_argument("--answers-file", type=Path, required=True, help="JSON lines of an answering program")
    parser.add_argument("--split", help="default: the one of the published number; a wrong name lists all")
    parser.add_argument(
        "--subset", action="store_true", help="the answers are for a subset: label the score, do not warn"
    )
    judge_settings.add_arguments(parser)
    return parser


def report(scored: Scored) -> None:
    """Notes on stderr; on stdout the table and, as the last line, the JSON document."""
    for note in scored.notes:
        print(note, file=sys.stderr)
    print(scored.table)
    print(json.dumps(scored.summary, ensure_ascii=False))


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    bench = benchmark(args.benchmark)
    split = bench.split(args.split)
    judge = judge_settings.settings_of(args)
    answers = home_path(args.answers_file)
    scored = score_answers(bench, split, bench.folder(args.data, split), answers, judge, args.subset, progress=True)
    report(scored)


if __name__ == "__main__":
    main()
