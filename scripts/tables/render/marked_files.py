"""Regenerates files of the repository that depend on committed cells, or checks that they are up to date."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from flowcut.cli.command_line import Parser, refuse
from llava.eval.files import write_atomic


def fill(text: str, marker: str, table: str) -> str:
    """`text`, with `table` between the two comments of `marker`.

    Raises:
        ValueError: the text lacks the comments.
    """
    pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the text has no <!-- {marker} --> ... <!-- /{marker} --> to fill")
    return pattern.sub(lambda found: f"{found[1]}\n{table}\n\n{found[2]}", text)


def build_parser(about: str | None) -> Parser:
    """The flags of every program that calls `keep_pages`."""
    parser = Parser(about)
    parser.add_argument("--results", type=Path, default=Path("results"), help="where cells are (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a file is out of date")
    return parser


def keep_pages(
    module: str, about: str | None, texts: Callable[[Path], Mapping[Path, str]], argv: list[str] | None
) -> None:
    """The body of a program's `main`: update files, or fail with --check if they are out of date.

    module: of the program. about: its help. texts: from the folder of results to each file's whole text; its ValueError
    becomes one line.
    """
    args = build_parser(about).parse_args(argv)
    keep(texts(args.results), args.check, module)


def keep(wanted: Mapping[Path, str], check: bool, module: str) -> None:
    """Write the files whose text is another one; with `check` end the program with a line that names them instead."""
    stale = {
        file: text for file, text in wanted.items() if not file.is_file() or file.read_text(encoding="utf-8") != text
    }
    names = ", ".join(str(file) for file in stale)
    if stale and check:
        refuse(f"error: out of date: {names}; run python -m {module}", status=1)
    for file, text in stale.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, text)
    print(f"changed: {names}" if stale else "up to date")
