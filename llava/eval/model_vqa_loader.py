"""Answer a question file: LLaVA's program of this name and its flags, batched, resumable, with a pruner if you like.

Started again after any kind of end, it answers what is missing. What could not be answered is reported at the end,
one line each, and listed in `<answers>.bad.jsonl`; the exit status is then 1, unless --skip-bad was given.
"""

from __future__ import annotations

import argparse

from llava.eval import program
from llava.eval.questions import Problem, Question, read_questions
from llava.eval.run import Run


def build_parser() -> argparse.ArgumentParser:
    return program.build_parser(__doc__, "JSON lines with question_id, image, text", "llava_v1", max_new_tokens=128)


def read(args: argparse.Namespace) -> tuple[list[Question], list[Problem]]:
    """The questions in `args.question_file`."""
    return read_questions(args.question_file)


def prepare(args: argparse.Namespace) -> Run:
    """Everything up to the first answer. Raises ValueError, one line, for whatever the user has to mend."""
    return program.prepare(args, read)


def eval_model(args: argparse.Namespace) -> int:
    """Answer a question file as the flags in `args` say; returns how many questions could not be answered."""
    return program.answer_all(prepare(args))


def main(argv: list[str] | None = None) -> None:
    program.run_program(build_parser(), read, argv)


if __name__ == "__main__":
    main()
