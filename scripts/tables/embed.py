"""Put the committed cells of the embedded benchmark into README.md and docs/embedded.md, between their markers.

python -m scripts.tables.embed            (--check: change nothing, fail if a table is out of date)
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.tables.grid import NOTHING
from scripts.tables.times import EFFICIENCY, how_taken, times_of

ROWS = ["blind", "none", *(f"{m}_{b}" for b in (192, 128, 64, 32) for m in ("random", "fastervlm", "flowcut"))]


def read_cells(folder: Path) -> dict[str, dict[str, Any]]:
    """{row: cell} in the order of the table. Raises ValueError for a cell that is not there."""
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
        f"{none['n']} held-out questions; intervals bootstrapped over scenes. {how} Each number's full story is in "
        "`results/embedded/`.",
    ]
    return "\n".join(lines)


def category_table(cells: dict[str, dict[str, Any]]) -> str:
    names = list(cells["none"]["categories"])
    lines = ["| tokens | method | " + " | ".join(names) + " |", "|---:|---|" + "---:|" * len(names)]
    for cell in cells.values():
        parts = " | ".join(f"{100 * cell['categories'][name]['accuracy']:.0f}" for name in names)
        lines.append(f"| {cell['tokens']['llm']:.0f} | {_label(cell)} | {parts} |")
    return "\n".join(lines)


def embed(text: str, marker: str, table: str) -> str:
    """`text` with what stands between the two comments of `marker` replaced by `table`."""
    pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the text has no <!-- {marker} --> ... <!-- /{marker} --> to fill")
    return pattern.sub(lambda found: f"{found[1]}\n{table}\n\n{found[2]}", text)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results/embedded"))
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a file is out of date")
    args = parser.parse_args(argv)
    try:
        cells = read_cells(args.results)
        times = args.results / EFFICIENCY
        tables = {"results": main_table(cells, times_of(times), how_taken(times)), "types": category_table(cells)}
        stale = []
        for file, markers in {"README.md": ["results"], "docs/embedded.md": ["results", "types"]}.items():
            old = new = Path(file).read_text("utf-8")
            for marker in markers:
                new = embed(new, marker, tables[marker])
            if new != old:
                stale.append(file)
                if not args.check:
                    Path(file).write_text(new, "utf-8")
    except ValueError as error:
        sys.exit(f"error: {error}")
    if args.check and stale:
        sys.exit(f"error: out of date: {', '.join(stale)}; run python -m scripts.tables.embed")
    print("changed:" if stale else "up to date", *stale)


if __name__ == "__main__":
    main()
