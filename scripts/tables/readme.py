"""The README's list of methods, from the registry, and its sentences on the comparison, from the committed cells.

python -m scripts.tables.readme            (--check: change nothing, fail if README.md is out of date)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowcut.cli.command_line import parse_first, program
from scripts.tables.render.marked_files import build_parser, fill, keep_pages

parse_first(__name__, lambda: build_parser(__doc__))

from flowcut.pruner import Pruner
from flowcut.registry import METHODS
from scripts.tables.cells.paired import Shared
from scripts.tables.cells.points import cuts_inside, label
from scripts.tables.methods import read_cells

PAGE = Path("README.md")
SHOWN = (64, 32)
"""Budgets of the sentences."""


def methods() -> str:
    """A row for each class of the registry, its presets beside it, in the registry's order."""
    rows: dict[type[Pruner], list[str]] = {}
    for name, method in METHODS.items():
        rows.setdefault(method.cls, []).append(name)
    lines = ["| method | `--pruner` | paper | cuts in | how it chooses |", "|---|---|---|---|---|"]
    for cls, names in rows.items():
        summary = (cls.__doc__ or "").splitlines()[0].rstrip(".")
        title = f"{cls.__name__.lower()} (control)" if cls.reference.startswith("control") else label(names[0])
        cells = [title, ", ".join(f"`{name}`" for name in names), _paper(cls.reference), _where(cls), summary]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _paper(reference: str) -> str:
    """A link to arXiv, where the reference has a number."""
    found = re.search(r"arXiv (\d+\.\d+)", reference)
    if found:
        return f"[{found[1]}](https://arxiv.org/abs/{found[1]})"
    return "this project" if "this project" in reference else "-"


def _where(cls: type[Pruner]) -> str:
    return "vision encoder" if cls.vision is not Pruner.vision else "language model"


def comparison(cells: Sequence[dict[str, Any]]) -> str:
    """Which methods are significantly better or worse than FlowCut, and than FlowCut+ where it has cells."""
    measured = {cell["method"] for cell in cells}
    own = [name for name in ("flowcut", "flowcut_plus") if name in measured]
    return "\n".join(f"- {_sentence(cells, name, budget)}" for name in own for budget in SHOWN)


def _sentence(cells: Sequence[dict[str, Any]], reference: str, budget: int) -> str:
    row = [cell for cell in cells if cell["budget"] == budget and cell["pruner"] != "none"]
    names = [cell["method"] for cell in row]
    own = names.index(reference)
    better: dict[bool, list[str]] = {False: [], True: []}
    worse = []
    for number, cell in enumerate(row):
        difference = Shared.of([cell, row[own]]).difference(0, 1)
        if number != own and difference.low > 0:
            better[cuts_inside(cell)].append(f"{label(names[number])} ({difference.value:+.1f})")
        elif number != own and difference.high < 0:
            worse.append(f"{label(names[number])} ({difference.value:+.1f})")
    return (
        f"**{label(reference)} at {budget} tokens.** More accurate, cutting in the encoder: {_listed(better[False])}; "
        f"cutting in the language model: {_listed(better[True])}. Less accurate: {_listed(worse)}."
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def texts(results: Path) -> dict[Path, str]:
    """The whole README."""
    page = fill(PAGE.read_text("utf-8"), "methods", methods())
    return {PAGE: fill(page, "comparison", comparison(read_cells(results / "embedded")))}


@program
def main(argv: list[str] | None = None) -> None:
    keep_pages("scripts.tables.readme", __doc__, texts, argv)


if __name__ == "__main__":
    main()
