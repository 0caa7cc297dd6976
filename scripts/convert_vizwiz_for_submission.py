"""Answers to VizWiz in the format of its server: image and normalised answer of every question."""

from __future__ import annotations

from pathlib import Path

from flowcut.cli.command_line import Parser, print_result, program
from llava.eval.benchmarks import vizwiz
from llava.eval.benchmarks.contract import by_id
from llava.eval.benchmarks.join import join, read_answers
from llava.eval.files import read_rows, write_rows
from llava.eval.sample import Sample


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--annotation-file", type=Path, required=True, help="question file, JSON lines")
    parser.add_argument("--result-file", type=Path, required=True, help="JSON lines of answers")
    parser.add_argument("--result-upload-file", type=Path, required=True, help="JSON to write")
    return parser


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    questions = read_rows(args.annotation_file)
    samples = [Sample(row["question_id"], (by_id(row),), extra=row["image"]) for row in questions]
    upload = vizwiz.upload_rows(join(samples, read_answers(args.result_file), by_id).samples)
    write_rows(upload, args.result_upload_file)
    print(f"{args.result_upload_file}: {len(upload)} answers")
    print_result({"file": str(args.result_upload_file), "answers": len(upload)})


if __name__ == "__main__":
    main()
