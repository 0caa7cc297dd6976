"""Review LLaVA-Bench's answers against the reference's, with LLaVA's flags and review file, by any judge.

    python -m llava.eval.eval_gpt_review_bench --question questions.jsonl --context context.jsonl \\
        --rule llava/eval/table/rule.json --answer-list answers_gpt4.jsonl answers.jsonl --out reviews.jsonl \\
        --judge-base-url URL

Everything is joined by id. Replies are kept in `<out>.judge.jsonl`, so that a killed run continues where it stopped.
`summarize_gpt_review` computes scores from the output.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowcut.cli.command_line import Parser, program
from llava.eval.benchmarks import llavabench
from llava.eval.benchmarks.contract import by_id
from llava.eval.benchmarks.join import join, read_answers
from llava.eval.files import Row, read_rows, write_rows
from llava.eval.judge import review
from llava.eval.judge import settings as judge_settings
from llava.eval.sample import Sample
from llava.given import home_path


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("-q", "--question", type=Path, required=True, help="questions.jsonl")
    parser.add_argument("-c", "--context", type=Path, required=True, help="context.jsonl")
    parser.add_argument(
        "-a", "--answer-list", type=Path, nargs=2, required=True, metavar=("REFERENCE", "ANSWERS"), help="JSON lines"
    )
    parser.add_argument("-r", "--rule", type=Path, help="LLaVA's rule.json, or the one here (the default)")
    parser.add_argument(
        "-o",
        "--out",
        also=["--output"],
        dest="output",
        type=Path,
        required=True,
        help="review file to write, JSON lines",
    )
    parser.add_argument("--max-tokens", type=int, default=1024, help="most tokens of a review")
    judge_settings.add_arguments(parser)
    return parser


def review_lines(samples: Sequence[Sample], references: Sequence[Row], answers: Sequence[Row]) -> list[dict[str, Any]]:
    """LLaVA's review lines, one for each verdict that a judge gave; `run` counts from 0."""
    first, second = ({by_id(row): row for row in rows} for rows in (references, answers))
    lines: list[dict[str, Any]] = []
    for sample in samples:
        for run, verdict in enumerate(sample.verdicts):
            if verdict.value is None or verdict.reply is None:
                continue
            name = str(sample.question_id)
            lines.append(
                {
                    "id": len(lines) + 1,
                    "question_id": sample.question_id,
                    "answer1_id": first[name].get("answer_id", name),
                    "answer2_id": second[name].get("answer_id", name),
                    "category": f"llava_bench_{sample.parts['category']}",
                    "content": verdict.reply.text,
                    "tuple": verdict.value,
                    "run": run,
                    "judge": verdict.reply.model,
                    "date": verdict.reply.date,
                }
            )
    return lines


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    args.judge_prompt = args.judge_prompt or args.rule
    args.judge_body = {"max_tokens": args.max_tokens, **args.judge_body}
    output: Path = home_path(args.output)
    if args.rule is not None and not home_path(args.rule).is_file():
        raise ValueError(f"--rule {args.rule} does not exist; leave --rule out for the project's own rules")
    settings = judge_settings.settings_of(args)
    if not settings.judges:
        raise ValueError(f"no judge was given; {judge_settings.HOW}")
    references, answers = (read_answers(path) for path in args.answer_list)
    contexts = read_rows(home_path(args.context), "context")
    samples = llavabench.samples_of(read_rows(home_path(args.question)), contexts, references)
    joined = join(samples, answers, by_id)
    journal = output.with_name(output.name + ".judge.jsonl")
    judged = review.apply(llavabench.BENCHMARK.judge, joined.samples, settings, journal, progress=True)
    lines = review_lines(judged.samples, references, answers)
    if judged.record:
        write_rows(lines, output)
    print("; ".join(judged.labels), file=sys.stderr)
    print(json.dumps({"benchmark": "llavabench", "reviews": len(lines), "judge": judged.record}, ensure_ascii=False))


if __name__ == "__main__":
    main()
