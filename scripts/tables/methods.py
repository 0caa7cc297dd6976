"""All methods on the embedded benchmark, side by side: renders docs/results.md from the committed cells.

python -m scripts.tables.methods            (--check: change nothing, fail if the page is out of date)

One table for each budget, best accuracy first. The difference to FlowCut is taken question by question on the same
questions, its interval bootstrapped over scenes; where the interval holds 0, the two cannot be told apart.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.confidence import bootstrap_interval
from scripts.tables.embed import embed

PAGE = Path("docs/results.md")
REFERENCE = "flowcut"
BUDGETS = (192, 128, 64, 32)


def read_cells(folder: Path) -> list[dict[str, Any]]:
    """All cells in the folder but the blind one. Raises ValueError when there is none."""
    cells = [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))]
    if not cells:
        raise ValueError(f"{folder} holds no cells; make them with scripts/embedded/evaluate.sh")
    return [cell for cell in cells if not cell["blind"]]


def difference(cell: dict[str, Any], other: dict[str, Any]) -> tuple[float, float, float] | None:
    """Mean and 95 % interval of accuracy less the other's, in points; None where other questions were asked."""
    if cell["scenes"] != other["scenes"]:
        return None
    pairs = zip(cell["scores"].split(), other["scores"].split(), strict=True)
    values = [100 * (float(one) - float(two)) for one, two in pairs]
    low, high = bootstrap_interval(values, cell["scenes"].split())
    return sum(values) / len(values), low, high


def row(cell: dict[str, Any], reference: dict[str, Any] | None) -> str:
    low, high = (f"{100 * end:.1f}" for end in cell["ci95"])
    tokens, gflops, ms = cell["tokens"], cell["gflops"], cell["ms"]
    beside = "-"
    if reference is not None and cell is not reference:
        found = difference(cell, reference)
        if found is not None:
            beside = f"{found[0]:+.1f} ({found[1]:+.1f} to {found[2]:+.1f})"
    inputs, outputs = (tokens.get(name, tokens["llm"]) for name in ("llm_inputs", "llm_outputs"))
    parts = [
        f"`{cell['pruner']}`",
        f"{100 * cell['accuracy']:.1f}",
        f"{low}-{high}",
        beside,
        f"{tokens['encoder_inputs']:.0f} / {tokens['encoder_outputs']:.0f}",
        f"{tokens['llm']:.0f}",
        f"{inputs:.0f} / {outputs:.0f}",
        f"{gflops['encoder']:.2f}",
        f"{gflops['prefill']:.2f}",
        f"{gflops['total']:.2f}",
        f"{ms['encode']['median']:.0f}",
        f"{ms['prefill']['median']:.0f}",
        f"{ms['median']:.0f}",
    ]
    return "| " + " | ".join(parts) + " |"


def table(cells: Sequence[dict[str, Any]]) -> str:
    """The cells of one budget, best first."""
    reference = next(
        (cell for cell in cells if cell["pruner"].startswith(REFERENCE + ":budget=") and "," not in cell["pruner"]),
        None,
    )
    head = (
        "| method | accuracy | 95 % | less FlowCut's | encoder, in / out | to the LLM | LLM layers, in / out "
        "| GF encoder | GF prefill | GF in all | encode ms | prefill ms | ms |"
    )
    ordered = sorted(cells, key=lambda cell: -cell["accuracy"])
    return "\n".join(
        [head, "|---|---:|---|---|---|---:|---|" + "---:|" * 6, *(row(cell, reference) for cell in ordered)]
    )


def render(cells: Sequence[dict[str, Any]]) -> str:
    parts = []
    none = next(cell for cell in cells if cell["pruner"] == "none")
    for budget in BUDGETS:
        own = [cell for cell in cells if cell["pruner"] != "none" and cell["budget"] == budget]
        if own:
            parts.append(f"### {budget} of {none['budget']}\n\n{table([none, *own])}")
    stated = sorted(
        {(cell["n"], cell["identity"]["dtype"], cell["hardware"]["threads"], cell["hardware"]["cpu"]) for cell in cells}
    )
    made = "; ".join(f"{n} questions, {dtype}, {threads} thread(s) of an {cpu}" for n, dtype, threads, cpu in stated)
    return "\n\n".join([*parts, f"{made}; batch 1; medians. Each number's full story is in `results/embedded/`."])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results/embedded"))
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the page is out of date")
    args = parser.parse_args(argv)
    try:
        old = PAGE.read_text("utf-8")
        new = embed(old, "methods", render(read_cells(args.results)))
    except ValueError as error:
        sys.exit(f"error: {error}")
    if args.check and new != old:
        sys.exit(f"error: {PAGE} is out of date; run python -m scripts.tables.methods")
    if not args.check:
        PAGE.write_text(new, "utf-8")
    print("up to date" if new == old else f"changed: {PAGE}")


if __name__ == "__main__":
    main()
