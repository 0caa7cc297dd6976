"""The paper's tables on the embedded model: renders docs/tables.md and results/embedded/tables/ from committed cells.

python -m scripts.tables.page            (--check: change nothing, fail if something is out of date)
"""

from __future__ import annotations

from pathlib import Path

from flowcut.cli.command_line import parse_first, program
from scripts.tables.render.marked_files import build_parser, fill, keep_pages

parse_first(__name__, lambda: build_parser(__doc__))

from scripts.tables.paper.tables import NUMBERS, table_of
from scripts.tables.render.embedded_grid import embedded_grid

PAGE = Path("docs/tables.md")


def texts(results: Path) -> dict[Path, str]:
    files: dict[Path, str] = {}
    page = PAGE.read_text("utf-8")
    for number in NUMBERS:
        grid = embedded_grid(table_of(number), results)
        page = fill(page, f"table{number}", grid.markdown())
        files |= grid.texts(results / "embedded" / "tables" / f"table{number:02d}")
    return {PAGE: page, **files}


@program
def main(argv: list[str] | None = None) -> None:
    keep_pages("scripts.tables.page", __doc__, texts, argv)


if __name__ == "__main__":
    main()
