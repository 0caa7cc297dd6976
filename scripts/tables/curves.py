"""Accuracy against tokens and FLOPs: draws docs/images/curves.svg and .png from the committed cells.

python -m scripts.tables.curves            (--check: change nothing, fail if a figure is out of date)

The points are in results/embedded/curves.csv. A figure carries the digest of the points that it was drawn from, so
whether it is up to date does not depend on the version of matplotlib.
"""

from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path

from flowcut.cli.command_line import parse_first, program
from scripts.tables.render.marked_files import build_parser, keep

parse_first(__name__, lambda: build_parser(__doc__))

from scripts.tables.cells.points import as_csv, points_of
from scripts.tables.methods import read_cells

FIGURES = (Path("docs/images/curves.svg"), Path("docs/images/curves.png"))
MODULE = "scripts.tables.curves"


def digest(text: str) -> str:
    """Of the points, as the figures carry it."""
    return "points " + hashlib.sha256(text.encode()).hexdigest()[:16]


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser(__doc__).parse_args(argv)
    points = points_of(read_cells(args.results / "embedded"))
    table = as_csv(points)
    keep({args.results / "embedded" / "curves.csv": table}, args.check, MODULE)
    mark = digest(table)
    stale = [file for file in FIGURES if not file.is_file() or mark.encode() not in file.read_bytes()]
    if stale and args.check:
        sys.exit(f"error: out of date: {', '.join(map(str, stale))}; run python -m {MODULE}")
    if stale:
        import matplotlib

        from scripts.tables.render.curves import curves

        matplotlib.rcParams.update({"svg.hashsalt": "curves", "svg.fonttype": "none"})
        figure = curves(points)
        for file in FIGURES:
            drawn = io.BytesIO()
            about = {"Description": mark, **({"Date": None} if file.suffix == ".svg" else {})}
            figure.savefig(drawn, format=file.suffix[1:], dpi=125, metadata=about)
            file.write_bytes(drawn.getvalue())
    print(f"changed: {', '.join(map(str, stale))}" if stale else "figures up to date")


if __name__ == "__main__":
    main()
