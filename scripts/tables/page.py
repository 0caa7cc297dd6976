"""The paper's tables on the embedded model: renders docs/tables.md and results/embedded/tables/ from committed cells.

python -m scripts.tables.page            (--check: change nothing, fail if something is out of date)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from scripts.tables.embed import embed
from scripts.tables.embedded_run import embedded_grid
from scripts.tables.make import NUMBERS, table_of

PAGE = Path("docs/tables.md")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--check", action="store_true", help="change nothing; fail if something is out of date")
    args = parser.parse_args(argv)
    old = new = PAGE.read_text("utf-8")
    stale = []
    try:
        for number in NUMBERS:
            grid = embedded_grid(table_of(number), args.results, None, True, "")
            new = embed(new, f"table{number}", grid.markdown())
            stem = args.results / "embedded" / "tables" / f"table{number:02d}"
            if not all(file.is_file() and file.read_text("utf-8") == text for file, text in grid.texts(stem).items()):
                stale.append(str(stem))
            if not args.check:
                grid.write(stem)
    except ValueError as error:
        sys.exit(f"error: {error}")
    stale += [str(PAGE)] if new != old else []
    if args.check and stale:
        sys.exit(f"error: out of date: {', '.join(stale)}; run python -m scripts.tables.page")
    if not args.check:
        PAGE.write_text(new, "utf-8")
    print("changed:" if stale else "up to date", *stale)


if __name__ == "__main__":
    main()
