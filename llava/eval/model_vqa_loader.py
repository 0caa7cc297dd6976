"""Answer a question file: LLaVA's program of this name with its flags, batched, resumable, optionally with a pruner.

When started again, it answers the remaining questions. Questions that could not be answered are reported at the end,
one line each, and listed in `<answers>.bad.jsonl`; the exit status is then 1, unless --skip-bad is given.
"""

from __future__ import annotations

import argparse

from flowcut.cli.command_line import parse_first
from llava.eval.answering import settings
from llava.eval.questions import Problem, Question, read_questions


def build_parser() -> argparse.ArgumentParser:
    return settings.build_parser(__doc__, "JSON lines with question_id, image, text", "llava_v1", max_new_tokens=128)


parse_first(__name__, build_parser)

from llava.eval.answering.program import AnsweringProgram


def read(args: argparse.Namespace) -> tuple[list[Question], list[Problem]]:
    """The questions in `args.question_file`."""
    return read_questions(args.question_file)


PROGRAM = AnsweringProgram(build_parser, read)
eval_model, main = PROGRAM.eval_model, PROGRAM.main

if __name__ == "__main__":
    main()
