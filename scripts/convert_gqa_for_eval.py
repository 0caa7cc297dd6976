"""Answers to GQA in the format of its official evaluator: a list of questionId and prediction."""

from __future__ import annotations

from flowcut.cli.command_line import program
from llava.eval.benchmarks.convert import convert
from llava.eval.benchmarks.gqa import predictions


@program
def main(argv: list[str] | None = None) -> None:
    convert(__doc__, lambda rows: predictions([(row["question_id"], row["text"]) for row in rows]), argv)


if __name__ == "__main__":
    main()
