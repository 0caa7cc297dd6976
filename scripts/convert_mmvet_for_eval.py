"""Answers to MM-Vet in the format of its evaluator: a dictionary from v1_<question id> to the answer."""

from __future__ import annotations

from flowcut.cli.command_line import program
from llava.eval.benchmarks.convert import convert


@program
def main(argv: list[str] | None = None) -> None:
    convert(__doc__, lambda rows: {f"v1_{row['question_id']}": row["text"] for row in rows}, argv)


if __name__ == "__main__":
    main()
