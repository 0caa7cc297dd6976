"""All methods on the embedded benchmark: renders docs/results.md from the committed cells.

python -m scripts.tables.methods            (--check: change nothing, fail if the page is out of date)

Two tables for each budget, best accuracy first. The difference to FlowCut is taken question by question on the same
questions, its interval bootstrapped over scenes; where the interval contains 0, the two cannot be distinguished.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowcut.cli.command_line import parse_first, program
from scripts.tables.cells.file_names import cell_name
from scripts.tables.render.grid import NOTHING, Grid
from scripts.tables.render.marked_files import build_parser, fill, keep_pages

parse_first(__name__, lambda: build_parser(__doc__))

from scripts.embedded.rows import BUDGETS, all_rows
from scripts.tables.cells.paired import Shared
from scripts.tables.cells.points import label
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


def name_of(cell: Mapping[str, Any]) -> str:
    return "no pruning" if cell["pruner"] == "none" else label(cell["method"])


def ranked(cells: Sequence[dict[str, Any]]) -> tuple[Shared, list[int]]:
    """The cells of one budget on the questions that they share, and their indices by accuracy, best first."""
    shared = Shared.of(cells)
    return shared, sorted(range(len(cells)), key=lambda index: -shared.accuracy(index).value)


def accuracies(cells: Sequence[dict[str, Any]], times: Mapping[str, Mapping[str, Any]]) -> Grid:
    """Accuracy, and in one number each what the language model reads and what a question costs."""
    shared, order = ranked(cells)
    reference = next((i for i, cell in enumerate(cells) if cell["pruner"].startswith(REFERENCE + ":budget=")), None)
    made = Grid("", ["method", "accuracy", "95 %", "vs. FlowCut", "LLM tokens", "GFLOPs", "ms"])
    made.better = {1: 1, 5: -1, 6: -1}
    for index in order:
        cell, mean = cells[index], shared.accuracy(index)
        own = times.get(cell["pruner"])
        if cell["pruner"] == "none":
            made.unranked.add(len(made.lines))
        known = reference is not None and index != reference
        made.lines.append(
            [
                name_of(cell),
                f"{mean.value:.1f}",
                f"{mean.low:.1f}-{mean.high:.1f}",
                shared.difference(index, reference).signed if known and reference is not None else NOTHING,
                f"{cell['tokens']['llm_inputs']:.0f}",
                f"{cell['gflops']['total']:.2f}",
                NOTHING if own is None else f"{own['total']:.0f}",
            ]
        )
    return made


def costs(cells: Sequence[dict[str, Any]], times: Mapping[str, Mapping[str, Any]]) -> Grid:
    """Tokens, GFLOPs and times of each part, in the order of `accuracies`, and the pruners' text forms."""
    head = ["method", "encoder in", "out", "to LLM", "LLM in", "out", "GF encoder", "GF prefill"]
    made = Grid("", [*head, "ms encode", "ms prefill", "--pruner"])
    for index in ranked(cells)[1]:
        cell = cells[index]
        tokens, gflops, own = cell["tokens"], cell["gflops"], times.get(cell["pruner"])
        counts = (tokens[key] for key in ("encoder_inputs", "encoder_outputs", "llm", "llm_inputs", "llm_outputs"))
        made.lines.append(
            [
                name_of(cell),
                *(f"{count:.0f}" for count in counts),
                *(f"{gflops[key]:.2f}" for key in ("encoder", "prefill")),
                *(NOTHING if own is None else f"{own[key]:.0f}" for key in ("encode", "prefill")),
                f"`{cell['pruner']}`",
            ]
        )
    return made


def render(cells: Sequence[dict[str, Any]], times: Mapping[str, Mapping[str, Any]], how: str) -> str:
    none = next(cell for cell in cells if cell["pruner"] == "none")
    rows = {
        budget: [none, *(cell for cell in cells if cell["pruner"] != "none" and cell["budget"] == budget)]
        for budget in BUDGETS
    }
    first, second = ["## Accuracy"], ["## Tokens, FLOPs and times"]
    for budget, own in rows.items():
        if len(own) > 1:
            number = len(Shared.of(own).questions)
            first += [f"### {budget} of {none['budget']}", accuracies(own, times).markdown()]
            first.append(f"{number} questions, the same in every row.")
            second += [f"### Costs at {budget} of {none['budget']}", costs(own, times).markdown()]
    return "\n\n".join([*first, *second, how])


def texts(results: Path) -> dict[Path, str]:
    times = results / "embedded" / EFFICIENCY
    table = render(read_cells(results / "embedded"), times_of(times), how_taken(times))
    return {PAGE: fill(PAGE.read_text("utf-8"), "methods", table)}


@program
def main(argv: list[str] | None = None) -> None:
    keep_pages("scripts.tables.methods", __doc__, texts, argv)


if __name__ == "__main__":
    main()
