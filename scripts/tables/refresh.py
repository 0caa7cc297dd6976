"""Renders everything that follows from the committed cells: tables in README and docs, results/embedded, the curves.

python -m scripts.tables.refresh            (--check: change nothing, fail if something is out of date)
"""

from __future__ import annotations

from flowcut.cli.command_line import parse_first, program
from scripts.tables.render.marked_files import build_parser

parse_first(__name__, lambda: build_parser(__doc__))

from scripts.tables import curves, embed, flowcut_plus, methods, page, readme

PROGRAMS = (embed, readme, methods, flowcut_plus, page, curves)


@program
def main(argv: list[str] | None = None) -> None:
    for one in PROGRAMS:
        one.main(argv)


if __name__ == "__main__":
    main()
