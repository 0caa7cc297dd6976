"""Render the committed comparison on photographs: the tables of docs/flowcut_plus.md and docs/images/coverage.svg.

    python -m scripts.real.coverage_page            (--check: change nothing, fail if the page is out of date)

The numbers are those of results/real/coverage.json, made by `scripts.real.coverage`. Intervals are bootstrapped over
pictures, differences taken picture by picture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowcut.cli.command_line import parse_first, program
from scripts.tables.render.marked_files import build_parser, fill, keep_pages

parse_first(__name__, lambda: build_parser(__doc__))

from llava.eval.metrics.bootstrap import bootstrap_interval

PAGE = Path("docs/flowcut_plus.md")
FIGURE = Path("docs/images/coverage.svg")
REFERENCE = "flowcut_plus"
COLOURS = {
    "flowcut": "#2458a6",
    "flowcut_plus": "#d9822b",
    "flowcut_plus,steepness=0.5": "#f2c089",
    "tome": "#3f8f4f",
}
OTHER = "#b4b8c0"

Row = Mapping[str, Any]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def with_interval(values: Sequence[float], sign: str = "") -> str:
    low, high = bootstrap_interval(values, range(len(values)))
    return f"{mean(values):{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def table(rows: Sequence[Row]) -> str:
    """The rows of one budget, the lowest coverage error first."""
    reference = next((row for row in rows if row["method"] == REFERENCE), None)
    head = ["method", "encoder FLOPs", "coverage error (95 %)", "difference to FlowCut+", "drift of CLS"]
    lines = ["| " + " | ".join(head) + " |", "|---|---:|---|---|---:|"]
    for row in sorted(rows, key=lambda row: mean(row["error"])):
        difference = "-"
        if reference is not None and row is not reference:
            pairs = zip(row["error"], reference["error"], strict=True)
            difference = with_interval([own - other for own, other in pairs], "+")
        drift = f"{mean(row['drift']):.3f}" if "drift" in row else "-"
        cells = (f"`{row['pruner']}`", f"{mean(row['share']):.2f}", with_interval(row["error"]), difference, drift)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def render(document: Mapping[str, Any]) -> str:
    budgets = sorted({row["budget"] for row in document["rows"]}, reverse=True)
    parts = [f"{len(document['pictures'])} photographs, {document['model']}, tokens after layer {document['layer']}."]
    for budget in budgets:
        parts += [f"### {budget} tokens", table([row for row in document["rows"] if row["budget"] == budget])]
    return "\n\n".join(parts)


def draw(document: Mapping[str, Any], file: Path) -> None:
    """Coverage error and drift of CLS against the encoder's FLOPs, one curve for each method."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for ax, key, title in zip(
        figure.subplots(1, 2), ("error", "drift"), ("coverage error", "drift of CLS"), strict=True
    ):
        for method in dict.fromkeys(row["method"] for row in document["rows"]):
            rows = sorted((row for row in document["rows"] if row["method"] == method), key=lambda row: row["budget"])
            if any(key not in row for row in rows):
                continue
            shares, values = ([mean(row[part]) for row in rows] for part in ("share", key))
            own = method in COLOURS
            name = method if own else "_"  # which a legend leaves out
            ax.plot(
                shares, values, "o-", color=COLOURS.get(method, OTHER), zorder=2 + own, markersize=4 + own, label=name
            )
        ax.set_xlabel("encoder FLOPs, share of unpruned")
        ax.set_title(f"{title} (lower is better)", fontsize=10, loc="left")
        ax.set_ylim(bottom=0)
        ax.spines[["top", "right"]].set_visible(False)
        ax.plot([], [], "o-", color=OTHER, markersize=4, label="other methods")
        ax.legend(fontsize=8, frameon=False, loc="center")
    file.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "coverage", "svg.fonttype": "path"}):
        figure.savefig(file, metadata={"Date": None})


def texts(results: Path) -> dict[Path, str]:
    document = json.loads((results / "real" / "coverage.json").read_text("utf-8"))
    return {PAGE: fill(PAGE.read_text("utf-8"), "coverage", render(document))}


@program
def main(argv: list[str] | None = None) -> None:
    keep_pages("scripts.real.coverage_page", __doc__, texts, argv)


if __name__ == "__main__":
    main()
