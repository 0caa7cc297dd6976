"""Writes flowcut/methods.json: every method with its settings and papers, read from the code.

    python -m scripts.methods            (--check: change nothing, fail if the table is out of date)

`python -m flowcut list` reads this table, because importing the classes would import torch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from flowcut.cli.command_line import Parser, parse_first, program
from flowcut.registered import TABLE


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if the table is out of date")
    return parser


parse_first(__name__, build_parser)

from flowcut.registry import METHODS, settings_of


def table() -> str:
    """The file's text."""
    methods = {
        name: {
            "class": method.cls.__name__,
            "paper": method.paper,
            "settings": [setting._asdict() for setting in settings_of(name)],
        }
        for name, method in METHODS.items()
    }
    return json.dumps(methods, indent=1, ensure_ascii=False) + "\n"


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 where --check finds another table."""
    args, text = build_parser().parse_args(argv), table()
    if not args.check:
        TABLE.write_text(text, encoding="utf-8")
    elif not TABLE.is_file() or TABLE.read_text(encoding="utf-8") != text:
        print(f"{TABLE.name} is out of date; run python -m scripts.methods", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
