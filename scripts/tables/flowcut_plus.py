"""FlowCut+ against every method that works in the encoder alone: renders a part of docs/flowcut_plus.md.

    python -m scripts.tables.flowcut_plus            (--check: change nothing, fail if the page is out of date)

From the committed cells of the embedded benchmark, and of the models that scripts/embedded/train_pruned.sh trains. Each
difference is taken question by question on the questions that both methods answered, its interval bootstrapped over
scenes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowcut.cli.command_line import parse_first, program
from scripts.tables.render.marked_files import build_parser, fill, keep_pages

parse_first(__name__, lambda: build_parser(__doc__))

from scripts.embedded.rows import BUDGETS, TRAINED
from scripts.tables.cells.file_names import cell_name
from scripts.tables.cells.paired import Shared
from scripts.tables.cells.points import cuts_inside
from scripts.tables.methods import read_cells

PAGE = Path("docs/flowcut_plus.md")
METHOD = "flowcut_plus"
BACKGROUND = "background"
"""The type of question that asks about the color between the shapes, for which any token of the background will do."""

Cell = Mapping[str, Any]


def line(cell: Cell, own: Cell, unpruned: Cell) -> str:
    shared = Shared.of([own, cell])
    parts = [
        "unpruned" if cell is unpruned else f"`{cell['pruner']}`",
        str(len(shared.questions)),
        f"{shared.accuracy(1).value:.1f}",
        "-" if cell is own else shared.difference(0, 1).signed,
        "-" if cell is own else shared.without(BACKGROUND).difference(0, 1).signed,
        f"{cell['gflops']['encoder'] / unpruned['gflops']['encoder']:.2f}",
    ]
    return "| " + " | ".join(parts) + " |"


def table(own: Cell, others: Sequence[Cell], unpruned: Cell) -> str:
    """FlowCut+ first, then the others of its budget, those with the highest accuracy first."""
    head = "| method | questions | accuracy | lead of FlowCut+ | lead without background questions | encoder FLOPs |"
    cells = [own, unpruned, *sorted(others, key=lambda cell: -cell["accuracy"])]
    return "\n".join([head, "|---|---:|---:|---|---|---:|", *(line(cell, own, unpruned) for cell in cells)])


def render(cells: Sequence[Cell]) -> str:
    """A section for each budget.

    Raises:
        ValueError: FlowCut+ has no cell at one of them.
    """
    unpruned = next(cell for cell in cells if cell["pruner"] == "none")
    parts = []
    for budget in BUDGETS:
        group = [cell for cell in cells if cell["pruner"] != "none" and cell["budget"] == budget]
        own = next((cell for cell in group if cell["method"] == METHOD), None)
        if own is None:
            raise ValueError(f"there is no cell of {METHOD} at {budget}; make it with scripts/embedded/evaluate.sh")
        others = [cell for cell in group if cell is not own and not cuts_inside(cell)]
        parts += [f"### {budget} of {unpruned['budget']} tokens", table(own, others, unpruned)]
    return "\n\n".join(parts)


def training(cells: Mapping[str, Cell], minutes: Mapping[str, float], before: Mapping[str, Cell]) -> str:
    """The models trained with pruned tokens, each evaluated with the pruner that it was trained with.

    cells: by pruner. minutes: of the training, by folder of results. before: cells of the model that training began
    with, by pruner.
    """
    lines = [
        "| trained and evaluated with | accuracy before | accuracy after | difference to all tokens | minutes |",
        "|---|---:|---:|---|---:|",
    ]
    for pruner, folder in TRAINED.items():
        own = Shared.of([cells["none"], cells[pruner], before[pruner]])
        parts = [
            "all 576 tokens" if pruner == "none" else f"`{pruner}`",
            f"{own.accuracy(2).value:.1f}",
            f"{own.accuracy(1).value:.1f}",
            "-" if pruner == "none" else own.difference(1, 0).signed,
            f"{minutes[folder]:.2f}",
        ]
        lines.append("| " + " | ".join(parts) + " |")
    return "\n".join(lines)


def read_training(results: Path) -> str:
    """The text of `training` from committed files."""
    runs = json.loads((results / "embedded" / "training.json").read_text("utf-8"))
    minutes = {run["run"]: run["seconds"] / 60 for run in runs["rows"]}
    cells, before = {}, {}
    for pruner, folder in TRAINED.items():
        name = f"{cell_name(pruner)}.json"
        cells[pruner] = json.loads((results / folder / "embedded" / name).read_text("utf-8"))
        before[pruner] = json.loads((results / "embedded" / name).read_text("utf-8"))
    return training(cells, minutes, before)


def texts(results: Path) -> dict[Path, str]:
    page = fill(PAGE.read_text("utf-8"), "embedded", render(read_cells(results / "embedded")))
    return {PAGE: fill(page, "training", read_training(results))}


@program
def main(argv: list[str] | None = None) -> None:
    keep_pages("scripts.tables.flowcut_plus", __doc__, texts, argv)


if __name__ == "__main__":
    main()
