"""All methods on the embedded benchmark: renders docs/results.md from the committed cells.

python -m scripts.tables.methods            (--check: change nothing, fail if the page is out of date)

One table for each budget, best accuracy first. The difference to FlowCut is taken question by question on the same
questions, its interval bootstrapped over scenes; where the interval contains 0, the two cannot be distinguished.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowcut.command_line import parse_first, program
from scripts.tables.cells.file_names import cell_name
from scripts.tables.render.grid import NOTHING
from scripts.tables.render.marked_files import build_parser, fill, keep_pages

parse_first(__name__, lambda: build_parser(__doc__))

from scripts.embedded.rows import BUDGETS, all_rows
from scripts.tables.cells.paired import Mean, Shared
from scripts.tables.cells.times import EFFICIENCY, how_taken, times_of

PAGE = Path("docs/results.md")
REFERENCE = "flowcut"


def read_cells(folder: Path) -> list[dict[str, Any]]:
    """The unpruned cell, and those of `scripts.embedded.rows` that exist.

    Raises:
        ValueError: there is no unpruned cell.
    """
    texts = ["none", *(text for budget in BUDGETS for text in all_rows(budget))]
    files = [folder / f"{cell_name(text)}.json" for text in texts]
    cells = [json.loads(file.read_text("utf-8")) for file in files if file.is_file()]
    if not any(cell["pruner"] == "none" for cell in cells):
        raise ValueError(f"{folder} holds no unpruned cell; make the cells with scripts/embedded/evaluate.sh")
    return cells


def line(cell: dict[str, Any], accuracy: Mean, difference: str, times: Mapping[str, Any] | None) -> str:
    tokens, gflops = cell["tokens"], cell["gflops"]
    parts = [
        f"`{cell['pruner']}`",
        f"{accuracy.value:.1f}",
        f"{accuracy.low:.1f}-{accuracy.high:.1f}",
        difference,
        f"{tokens['encoder_inputs']:.0f} / {tokens['encoder_outputs']:.0f}",
        f"{tokens['llm']:.0f}",
        f"{tokens['llm_inputs']:.0f} / {tokens['llm_outputs']:.0f}",
        f"{gflops['encoder']:.2f}",
        f"{gflops['prefill']:.2f}",
        f"{gflops['total']:.2f}",
        *(NOTHING if times is None else f"{times[name]:.0f}" for name in ("encode", "prefill", "total")),
    ]
    return "| " + " | ".join(parts) + " |"


def table(cells: Sequence[dict[str, Any]], times: Mapping[str, Mapping[str, Any]]) -> tuple[str, int]:
    """A table of the cells of one budget, best first, on the questions that they share, and the number of these."""
    shared = Shared.of(cells)
    accuracies = [shared.accuracy(index) for index in range(len(cells))]
    reference = next((i for i, cell in enumerate(cells) if cell["pruner"].startswith(REFERENCE + ":budget=")), None)
    head = (
        "| method | accuracy | 95 % | vs. FlowCut | encoder, in / out | to the LLM | LLM layers, in / out "
        "| GF encoder | GF prefill | GF total | encode ms | prefill ms | ms |"
    )
    lines = [head, "|---|---:|---|---|---|---:|---|" + "---:|" * 6]
    for index in sorted(range(len(cells)), key=lambda index: -accuracies[index].value):
        difference = NOTHING
        if reference is not None and index != reference:
            difference = shared.difference(index, reference).signed
        cell = cells[index]
        lines.append(line(cell, accuracies[index], difference, times.get(cell["pruner"])))
    return "\n".join(lines), len(shared.questions)


def render(cells: Sequence[dict[str, Any]], times: Mapping[str, Mapping[str, Any]], how: str) -> str:
    parts = []
    none = next(cell for cell in cells if cell["pruner"] == "none")
    for budget in BUDGETS:
        own = [cell for cell in cells if cell["pruner"] != "none" and cell["budget"] == budget]
        if own:
            lines, questions = table([none, *own], times)
            parts.append(
                f"### {budget} of {none['budget']}\n\n{lines}\n\n{questions} questions, the same in every row."
            )
    return "\n\n".join([*parts, how])


def texts(results: Path) -> dict[Path, str]:
    times = results / "embedded" / EFFICIENCY
    table = render(read_cells(results / "embedded"), times_of(times), how_taken(times))
    return {PAGE: fill(PAGE.read_text("utf-8"), "methods", table)}


@program
def main(argv: list[str] | None = None) -> None:
    keep_pages("scripts.tables.methods", __doc__, texts, argv)


if __name__ == "__main__":
    main()
