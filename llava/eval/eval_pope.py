"""POPE's measures per category, with LLaVA's flags; other files in the annotation folder are ignored.

The last line of stdout is one JSON document, whose `main` is the mean of the categories' F1.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from flowcut.cli.command_line import Parser, program
from llava.eval.benchmarks import pope
from llava.eval.benchmarks.join import join, read_answers
from llava.eval.benchmarks.score_report import shown, warnings
from llava.eval.files import read_rows


def evaluate(annotation_dir: Path, question_file: Path, result_file: Path) -> tuple[dict[str, Any], list[str]]:
    """The summary of `benchmarks.pope`, and warnings. Raises ValueError when the files do not match."""
    samples = pope.samples_of(pope.official_rows(annotation_dir), read_rows(question_file))
    joined = join(samples, read_answers(result_file), pope.answer_key)
    return pope.aggregate([pope.score(sample) for sample in joined.samples]), warnings(joined, subset=False)


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--annotation-dir", type=Path, required=True, help="folder of coco_pope_<category>.json")
    parser.add_argument("--question-file", type=Path, required=True, help="the question file, JSON lines")
    parser.add_argument("--result-file", type=Path, required=True, help="JSON lines of answers")
    return parser


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    summary, said = evaluate(args.annotation_dir, args.question_file, args.result_file)
    for warning in said:
        print(f"warning: {warning}", file=sys.stderr)
    for category, part in summary["parts"]["category"].items():
        print(f"Category: {category}, # samples: {part['n']}")
        print("TP\tFP\tTN\tFN\t")
        print(f"{part['TP']}\t{part['FP']}\t{part['TN']}\t{part['FN']}")
        for title in ("Accuracy", "Precision", "Recall", "F1 score", "Yes ratio"):
            value = part[{"F1 score": "f1", "Yes ratio": "yes_ratio"}.get(title, title.lower())]
            print(f"{title}: {'-' if value is None else value / 100}")
        row = (part[name] for name in ("f1", "accuracy", "precision", "recall", "yes_ratio"))
        print(", ".join("-" if value is None else f"{value / 100:.3f}" for value in row))
        print("=" * 36)
    print(f"mean F1 {shown(summary['main'])}")
    print(json.dumps({"benchmark": "pope", **summary}))


if __name__ == "__main__":
    main()
