"""Answers to MME in the format of its official tool: per task a `<task>.txt` of picture, question, truth, answer.

Reads DIR/answers/EXPERIMENT.jsonl, writes DIR/eval_tool/answers/EXPERIMENT/; `llava.eval.eval_mme` scores it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from flowcut.cli.command_line import Parser, print_result, program
from llava.eval.benchmarks.mme import BENCHMARK, TEST, write_results
from llava.eval.benchmarks.score_report import warnings


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--experiment", required=True, help="name of the answers file without .jsonl, slashes allowed")
    parser.add_argument("--dir", type=Path, default=Path("playground/data/eval/MME"), help="MME's folder")
    return parser


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    joined = BENCHMARK.read(args.dir, args.dir / "answers" / f"{args.experiment}.jsonl", TEST)
    for warning in warnings(joined, subset=False):
        print(f"warning: {warning}", file=sys.stderr)
    folder = write_results(joined.samples, args.dir / "eval_tool" / "answers" / args.experiment)
    print(folder)
    print_result({"folder": str(folder), "questions": len(joined.samples)})


if __name__ == "__main__":
    main()
