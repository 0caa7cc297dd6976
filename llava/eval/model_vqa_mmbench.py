"""Answer MMBench: a table (TSV) with pictures in base64. The rotated copies of a question are separate rows.

Answer lines have `question_id` (the row's index), `round_id`, `options` and `option_char` as further keys.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping

from flowcut.cli.command_line import parse_first
from llava.eval.answering import settings
from llava.eval.benchmarks.answer_formats import OPTION_LETTER, with_options
from llava.eval.benchmarks.mmbench import options_of
from llava.eval.files import is_empty, read_table
from llava.eval.questions import Problem, Question, read_rows
from llava.given import decode_base64, home_path, refuse_surrogates


def build_parser() -> argparse.ArgumentParser:
    questions = "table (TSV) with index, image, question, hint, A, B, C, D"
    parser = settings.build_parser(__doc__, questions, "llava_v1", max_new_tokens=1024)
    parser.add_argument("--all-rounds", action="store_true", help="rotate each row's options through all positions")
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the option's letter only")
    parser.add_argument("--lang", choices=("en", "cn"), default="en", help="language of that sentence")
    return parser


parse_first(__name__, build_parser)

from llava.eval.answering.program import AnsweringProgram

OPTION_LETTER_CN = "请直接回答选项字母。"


def read(args: argparse.Namespace) -> tuple[list[Question], list[Problem]]:
    """The questions in `args.question_file`. Raises ValueError when it is no such table."""
    file = home_path(args.question_file)
    rows = list(read_table(file))
    if rows and (missing := {"index", "image", "question", "A"} - set(rows[0])):
        raise ValueError(f"{file} has no column {', '.join(sorted(missing))}; give MMBench's .tsv")
    pictures = {str(row["index"]): row["image"] for row in rows}
    numbered = ((f"{file.name} row {number}", row) for number, row in enumerate(rows, start=1))
    rounds, problems = read_rows(numbered, lambda row: _questions(row, pictures, args))
    return [question for own in rounds for question in own], problems


def _questions(row: dict[str, str], pictures: Mapping[str, str], args: argparse.Namespace) -> list[Question]:
    try:
        return list(_rounds(row, pictures, args))
    except (ValueError, TypeError) as error:
        raise ValueError(f"is not a question: {error}") from error


def _picture(row: dict[str, str], pictures: Mapping[str, str]) -> bytes:
    """The bytes of a row's picture, which may be given as the index of another row with the same picture."""
    cell = row["image"]
    if cell.strip().isdecimal() and cell.strip() in pictures:
        cell = pictures[cell.strip()]
    return decode_base64(cell)


def _rounds(row: dict[str, str], pictures: Mapping[str, str], args: argparse.Namespace) -> Iterator[Question]:
    for name in ("index", "image", "question", "A"):
        if is_empty(row.get(name)):
            raise ValueError(f"it has no {name}")
    refuse_surrogates("".join(cell for cell in row.values() if isinstance(cell, str)))
    letters, options = (list(part) for part in zip(*options_of(row).items(), strict=True))
    picture = _picture(row, pictures)
    asked = row["question"] if is_empty(row.get("hint")) else f"{row['hint']}\n{row['question']}"
    for number in range(len(options) if args.all_rounds else 1):
        turned = options[number:] + options[:number]
        recorded = with_options(asked, turned)
        text = recorded
        if args.single_pred_prompt:
            text += "\n" + (OPTION_LETTER_CN if args.lang == "cn" else OPTION_LETTER)
        extra = {"round_id": number, "options": turned, "option_char": letters[number:] + letters[:number]}
        yield Question(int(row["index"]), (picture,), text, recorded, extra)


PROGRAM = AnsweringProgram(build_parser, read)
eval_model, main = PROGRAM.eval_model, PROGRAM.main

if __name__ == "__main__":
    main()
