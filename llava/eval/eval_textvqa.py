"""TextVQA accuracy of one answers file, or of each in a folder, with LLaVA's flags.

The last line of stdout is one JSON document: accuracy, number of answers, per file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flowcut.cli.command_line import Parser, program
from llava.eval.benchmarks import textvqa
from llava.eval.benchmarks.join import join, read_answers


def evaluate(annotation_file: Path, result_file: Path) -> dict[str, Any]:
    """The summary of `benchmarks.textvqa`. Raises ValueError for an answer to no annotated question."""
    samples = textvqa.samples_of(textvqa.annotated(annotation_file))
    joined = join(samples, read_answers(result_file), textvqa.answer_key)
    if joined.unknown:
        raise ValueError(
            f"{len(joined.unknown)} answers of {result_file} belong to no question of {annotation_file} (first: "
            f"{joined.unknown[0]}); give the annotations of the same questions"
        )
    return textvqa.aggregate([textvqa.score(sample) for sample in joined.samples])


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--annotation-file", type=Path, required=True, help=textvqa.ANNOTATION)
    parser.add_argument("--result-file", type=Path, help="JSON lines of answers")
    parser.add_argument("--result-dir", type=Path, help="folder of such files, *.jsonl")
    return parser


@program
def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    files = [] if args.result_file is None else [args.result_file]
    files += [] if args.result_dir is None else sorted(args.result_dir.glob("*.jsonl"))
    if not files:
        parser.error("no answers: give --result-file, or --result-dir with .jsonl files in it")
    results = {}
    for file in files:
        summary = evaluate(args.annotation_file, file)
        accuracy = "-" if summary["main"] is None else f"{summary['main']:.2f}%"
        print(f"{file.stem}\nSamples: {summary['n']}\nAccuracy: {accuracy}\n")
        results[file.stem] = {"accuracy": summary["main"], "n": summary["n"], "missing": summary["missing"]}
    print(json.dumps({"benchmark": "textvqa", "results": results}))


if __name__ == "__main__":
    main()
