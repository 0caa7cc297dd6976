"""Put the committed cells of the embedded benchmark into README.md and docs/embedded.md, between their markers.

python -m scripts.tables.embed            (--check: change nothing, fail if a table is out of date)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowcut.cli.command_line import parse_first, program
from scripts.tables.render.grid import NOTHING
from scripts.tables.render.marked_files import build_parser, fill, keep_pages

parse_first(__name__, lambda: build_parser(__doc__))

from scripts.embedded.rows import BUDGETS, MAIN
from scripts.tables.cells.times import EFFICIENCY, how_taken, times_of

ROWS = ["blind", "none", *(f"{method}_{budget}" for budget in BUDGETS for method in MAIN)]


def read_cells(folder: Path) -> dict[str, dict[str, Any]]:
    """Cells by the names of `ROWS`, in their order.

    Raises:
        ValueError: a cell does not exist.
    """
    missing = [name for name in ROWS if not (folder / f"{name}.json").is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}; make them with scripts/embedded/evaluate.sh")
    return {name: json.loads((folder / f"{name}.json").read_text("utf-8")) for name in ROWS}


def _label(cell: dict[str, Any]) -> str:
    return "blind (another picture)" if cell["blind"] else {"none": "no pruning"}.get(cell["method"], cell["method"])


def main_table(cells: dict[str, dict[str, Any]], times: Mapping[str, Mapping[str, float]], how: str) -> str:
    lines = [
        "| tokens to the LLM | method | accuracy | 95 % CI | GFLOPs encoder | GFLOPs prefill | ms a question | speed |",
        "|---:|---|---:|---|---:|---:|---:|---:|",
    ]
    for cell in cells.values():
        low, high = (f"{100 * end:.1f}" for end in cell["ci95"])
        gflops, own = cell["gflops"], times.get("" if cell["blind"] else cell["pruner"])
        ms, speed = (NOTHING, NOTHING) if own is None else (f"{own['total']:.0f}", f"{own['total_speedup']:.2f}x")
        lines.append(
            f"| {cell['tokens']['llm']:.0f} | {_label(cell)} | {100 * cell['accuracy']:.1f} | {low}-{high} "
            f"| {gflops['encoder']:.2f} | {gflops['prefill']:.2f} | {ms} | {speed} |"
        )
    none = cells["none"]
    lines += [
        "",
        f"{none['n']} held-out questions; intervals bootstrapped over scenes. {how} How each number was measured is "
        "recorded in `results/embedded/`.",
    ]
    return "\n".join(lines)


def category_table(cells: dict[str, dict[str, Any]]) -> str:
    names = list(cells["none"]["categories"])
    lines = ["| tokens | method | " + " | ".join(names) + " |", "|---:|---|" + "---:|" * len(names)]
    for cell in cells.values():
        parts = " | ".join(f"{100 * cell['categories'][name]['accuracy']:.0f}" for name in names)
        lines.append(f"| {cell['tokens']['llm']:.0f} | {_label(cell)} | {parts} |")
    return "\n".join(lines)


def texts(results: Path) -> dict[Path, str]:
    """The whole text of README and of the embedded model's page, with their tables."""
    cells = read_cells(results / "embedded")
    times = results / "embedded" / EFFICIENCY
    tables = {"results": main_table(cells, times_of(times), how_taken(times)), "types": category_table(cells)}
    pages = {}
    for file, markers in {"README.md": ["results"], "docs/embedded.md": ["results", "types"]}.items():
        text = Path(file).read_text("utf-8")
        for marker in markers:
            text = fill(text, marker, tables[marker])
        pages[Path(file)] = text
    return pages


@program
def main(argv: list[str] | None = None) -> None:
    keep_pages("scripts.tables.embed", __doc__, texts, argv)


if __name__ == "__main__":
    main()
