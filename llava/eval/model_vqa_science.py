"""Answer ScienceQA: a JSON list of conversations, with pictures or without.

In the answers file a question with a picture begins with `<image>`, by which the scorer distinguishes the two kinds.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from flowcut.cli.command_line import parse_first
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.eval.answering import settings
from llava.eval.benchmarks.answer_formats import OPTION_LETTER
from llava.eval.questions import Problem, Question, image_names, read_rows
from llava.given import read_json


def build_parser() -> argparse.ArgumentParser:
    parser = settings.build_parser(__doc__, "JSON list of id, image, conversations", "llava_v0", max_new_tokens=1024)
    parser.add_argument("--answer-prompter", action="store_true", help="accepted without effect, as in LLaVA")
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the option's letter only")
    return parser


parse_first(__name__, build_parser)

from llava.eval.answering.program import AnsweringProgram


def read(args: argparse.Namespace) -> tuple[list[Question], list[Problem]]:
    """The questions in `args.question_file`. Raises ValueError when it is not a JSON list."""
    file = Path(args.question_file)
    rows = read_json(file)
    if not isinstance(rows, list):
        raise ValueError(f"{file} must hold a JSON list of questions; give ScienceQA's llava_test_CQM-A.json")
    named = ((f"{file.name} entry {number}", row) for number, row in enumerate(rows))
    return read_rows(named, partial(_question, letter_alone=args.single_pred_prompt))


def _question(row: dict[str, Any], letter_alone: bool) -> Question:
    try:
        text = row["conversations"][0]["value"].replace(DEFAULT_IMAGE_TOKEN, "").strip()
        identity = row["id"]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"is not a question: {error!r}") from error
    if letter_alone:
        text = f"{text}\n{OPTION_LETTER}"
    images = image_names(row.get("image"))
    mark = DEFAULT_IMAGE_TOKEN + "\n" if images else ""
    return Question(identity, images, text, prompt=mark + text)


PROGRAM = AnsweringProgram(build_parser, read)
eval_model, main = PROGRAM.eval_model, PROGRAM.main

if __name__ == "__main__":
    main()
