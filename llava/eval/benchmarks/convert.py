"""A program that turns an answers file into one JSON document, with LLaVA's flags --src and --dst."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowcut.cli.command_line import Parser, print_result
from llava.eval.benchmarks.join import read_answers
from llava.eval.files import Row, write_json


def convert(description: str | None, change: Callable[[list[Row]], Any], argv: list[str] | None) -> None:
    """Write the result of `change` on the answers; raises ValueError, one line, when they cannot be read."""
    parser = Parser(description)
    parser.add_argument("--src", type=Path, required=True, help="JSON lines of answers")
    parser.add_argument("--dst", type=Path, required=True, help="JSON to write")
    args = parser.parse_args(argv)
    rows = read_answers(args.src)
    write_json(change(rows), args.dst)
    print_result({"file": str(args.dst), "answers": len(rows)})
