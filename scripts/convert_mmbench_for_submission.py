"""Answers to MMBench in the format of its server: the table without pictures, with a column `prediction`, as xlsx.

Reads RESULT_DIR/EXPERIMENT.jsonl, writes UPLOAD_DIR/EXPERIMENT.xlsx.
"""

from __future__ import annotations

from pathlib import Path

from flowcut.cli.command_line import Parser, print_result, program
from llava.eval.benchmarks import mmbench
from llava.eval.benchmarks.join import read_answers


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--annotation-file", type=Path, required=True, help="MMBench's .tsv")
    parser.add_argument("--result-dir", type=Path, required=True, help="folder of the answers")
    parser.add_argument("--upload-dir", type=Path, required=True, help="folder to write to")
    parser.add_argument("--experiment", required=True, help="name of the answers file without .jsonl")
    return parser


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    target = args.upload_dir / f"{args.experiment}.xlsx"
    answers = read_answers(args.result_dir / f"{args.experiment}.jsonl")
    lines = mmbench.submission(args.annotation_file, {int(row["question_id"]): row["text"] for row in answers})
    mmbench.write_xlsx(lines, target)
    print(f"{target}: {len(lines) - 1} rows, {len(answers)} answers")
    print_result({"file": str(target), "rows": len(lines) - 1, "answers": len(answers)})


if __name__ == "__main__":
    main()
