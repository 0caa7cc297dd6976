"""ScienceQA accuracy, over all questions and over those with a picture, with LLaVA's flags and output files.

As in LLaVA a question without an answer counts as wrong here; their number is reported. `llava.eval.score sqa` excludes
them. The last line of stdout is one JSON document.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowcut.cli.command_line import Parser, program
from llava.eval.benchmarks import sqa
from llava.eval.benchmarks.contract import Split
from llava.eval.benchmarks.join import join, read_answers
from llava.eval.files import write_json
from llava.eval.sample import Sample


def analysis(sample: Sample, options: Sequence[str]) -> dict[str, Any]:
    """One question as LLaVA's output file has it."""
    text = sqa.FAILED if sample.text is None else sample.text
    return {
        "question_id": sample.question_id,
        "parsed_ans": sqa.parse(text, options),
        "ground_truth": options[sample.truth],
        "question": "Unknown" if sample.text is None else sample.prompt,
        "pred": text,
        "is_multimodal": sample.text is not None and sqa.has_image(sample),
    }


def evaluate(base_dir: Path, result_file: Path, split: str, options: Sequence[str]) -> dict[str, Any]:
    """`output` and `result`, the contents of LLaVA's two files, and the accuracies. Raises ValueError for bad files."""
    samples = sqa.load(base_dir, Split(split, ""), [])
    joined = join(samples, read_answers(result_file), lambda row: str(row["question_id"]))
    output: dict[str, list[Any]] = {"correct": [], "incorrect": []}
    indices, outputs = {}, {}
    for sample in joined.samples:
        entry = analysis(sample, options)
        index = sqa.choice(entry["parsed_ans"], sample.extra["choices"], options)
        output["correct" if index == sample.truth else "incorrect"].append(entry)
        indices[sample.question_id], outputs[sample.question_id] = index, entry["pred"]
    right, total = len(output["correct"]), len(joined.samples)
    pictured = {name: sum(entry["is_multimodal"] for entry in entries) for name, entries in output.items()}
    accuracy = 100 * right / total if total else None
    with_picture = sum(pictured.values())
    return {
        "output": output,
        "result": {"acc": accuracy, "correct": right, "count": total, "results": indices, "outputs": outputs},
        "accuracy": accuracy,
        "img_accuracy": 100 * pictured["correct"] / with_picture if with_picture else None,
        "n": total,
        "n_img": with_picture,
        "missing": len(joined.missing),
    }


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--base-dir", type=Path, required=True, help="folder of problems.json and pid_splits.json")
    parser.add_argument("--result-file", type=Path, required=True, help="JSON lines of answers")
    parser.add_argument("--output-file", type=Path, required=True, help="JSON to write: right and wrong answers")
    parser.add_argument("--output-result", type=Path, required=True, help="JSON to write: accuracy, chosen indices")
    parser.add_argument("--split", default="test")
    parser.add_argument("--options", type=list, default=list(sqa.OPTIONS), help="letters, written together: ABCDE")
    return parser


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    summary = evaluate(args.base_dir, args.result_file, args.split, args.options)
    write_json(summary.pop("output"), args.output_file)
    result = summary.pop("result")
    write_json(result, args.output_result)
    shown = {name: "-" if summary[name] is None else f"{summary[name]:.2f}%" for name in ("accuracy", "img_accuracy")}
    print(
        f"Total: {result['count']}, Correct: {result['correct']}, Accuracy: {shown['accuracy']}, IMG-Accuracy: "
        f"{shown['img_accuracy']}"
    )
    if summary["missing"]:
        print(f"warning: {summary['missing']} questions have no answer and count as wrong", file=sys.stderr)
    print(json.dumps({"benchmark": "sqa", "split": args.split, **summary}))


if __name__ == "__main__":
    main()
