"""MME's points from a folder of `<task>.txt`, with the official tool's flag.

The last line of stdout is one JSON document, whose `main` is perception + cognition.
"""

from __future__ import annotations

import json
from pathlib import Path

from flowcut.cli.command_line import Parser, program
from llava.eval.benchmarks import mme
from llava.eval.benchmarks.score_report import shown


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--results_dir", type=Path, required=True, help="folder written by convert_answer_to_mme.py")
    return parser


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    summary = mme.aggregate([mme.score(sample) for sample in mme.read_results(args.results_dir)])
    for name, members in (("perception", mme.PERCEPTION), ("cognition", mme.COGNITION)):
        print(f"{name} total score: {shown(summary['parts']['sum'][name]['value'])}")
        for task in members:
            part = summary["parts"]["task"].get(task, {"value": None})
            print(f"\t {task} score: {shown(part['value'])}")
    print(f"perception + cognition: {shown(summary['main'])}")
    print(json.dumps({"benchmark": "mme", **summary}))


if __name__ == "__main__":
    main()
