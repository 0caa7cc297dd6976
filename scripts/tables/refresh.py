"""Renders everything that follows from the committed cells: tables in README and docs, results/embedded, the curves.

python -m scripts.tables.refresh            (--check: change nothing, fail if something is out of date)
"""

from __future__ import annotations

from scripts.tables import curves, embed, methods, page, readme

PROGRAMS = (embed, readme, methods, page, curves)


def main(argv: list[str] | None = None) -> None:
    for program in PROGRAMS:
        program.main(argv)


if __name__ == "__main__":
    main()
