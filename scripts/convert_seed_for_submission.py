"""SEED-Bench accuracy by type, total, images and videos, and the leaderboard's file; with LLaVA's flags.

The last line of stdout is one JSON document. Questions without an answer are counted as missing, not as wrong.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from flowcut.cli.command_line import Parser, program
from llava.eval.benchmarks import seed
from llava.eval.benchmarks.contract import by_id
from llava.eval.benchmarks.join import join, read_answers
from llava.eval.benchmarks.score_report import shown, warnings
from llava.eval.files import write_rows


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--annotation-file", type=Path, required=True, help=seed.ANNOTATION)
    parser.add_argument("--result-file", type=Path, required=True, help="JSON lines of answers")
    parser.add_argument("--result-upload-file", type=Path, required=True, help="JSON lines to write")
    return parser


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    samples = seed.samples_of(args.annotation_file, "all")
    joined = join(samples, read_answers(args.result_file), by_id)
    for warning in warnings(joined, subset=False):
        print(f"warning: {warning}", file=sys.stderr)
    summary = seed.aggregate([seed.score(sample) for sample in joined.samples])
    write_rows(seed.upload_rows(joined.samples), args.result_upload_file)
    for name, part in summary["parts"]["type"].items():
        print(f"{name}: {shown(part['value'])}%")
    print(f"Total accuracy: {shown(summary['main'])}%")
    for kind, part in summary["parts"]["kind"].items():
        print(f"{kind} accuracy: {shown(part['value'])}%")
    print(json.dumps({"benchmark": "seed", **summary}, ensure_ascii=False))


if __name__ == "__main__":
    main()
