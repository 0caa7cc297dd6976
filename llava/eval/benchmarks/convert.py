"""A program that turns an answers file into one JSON document, with LLaVA's flags --src and --dst."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llava.eval.benchmarks.join import read_answers
from llava.eval.files import Row, write_json
from llava.given import told_in_one_line


def convert(description: str | None, change: Callable[[list[Row]], Any], argv: list[str] | None) -> None:
    """Write the result of `change` on the answers; ends the program with one line when they cannot be read."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--src", type=Path, required=True, help="JSON lines of answers")
    parser.add_argument("--dst", type=Path, required=True, help="JSON to write")
    args = parser.parse_args(argv)
    with told_in_one_line():
        answers = read_answers(args.src)
    write_json(change(answers), args.dst)
