"""The paper's tables on the embedded model, whose only benchmark has question types as columns.

A row keeps the same fraction of visual tokens as in the paper. The paper's number is the last column, for orientation:
it is of another model on other questions, so no difference is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scripts.embedded.rows import PATCHES
from scripts.tables.cells.paired import CellDocument, Shared
from scripts.tables.paper.embedded_rows import pruner_of, pruners
from scripts.tables.paper.spec import Row, Table
from scripts.tables.render.grid import NOTHING, Grid

SHAPE = {
    2: "The embedded model has no tiles: rows keep the same share of a picture's tokens, cut in the encoder only.",
    3: "The embedded model is a LLaVA with a CLS token: rows keep the same share of its tokens.",
    4: "The embedded model sees no videos: rows keep the same share, an eighth, of one picture's tokens.",
}


def accuracy(table: Table, cells: Mapping[str, CellDocument]) -> Grid:
    """Accuracy of every row, in percent, on the questions that all cells share.

    cells: by text form, one for each of `pruners`.

    Raises:
        ValueError: the cells share no question.
    """
    texts = pruners(table)
    shared = Shared.of([cells[text] for text in texts])
    unpruned = texts.index("none")
    types = list(shared.by_type(unpruned))
    made = _empty(table, ["all", "95 %", "vs. unpruned", "share, %", *types, "GFLOPs"])
    made.better = {2: 1, 5: 1, 6 + len(types): -1}
    for one in table.rows:
        text = pruner_of(table, one)
        if text is None:
            made.lines.append(_not_run(made, one, len(made.header) - 4, _paper(table, one)))
            made.groups.append(one.section)
            continue
        own = texts.index(text)
        if own == unpruned:
            made.unranked.add(len(made.lines))
        made.groups.append(one.section)
        mean, whole = shared.accuracy(own), shared.accuracy(unpruned)
        made.lines.append(
            [
                *_head(made, cells[text], one, text),
                f"{mean.value:.1f}",
                f"{mean.low:.1f}-{mean.high:.1f}",
                NOTHING if own == unpruned else shared.difference(own, unpruned).signed,
                f"{100 * mean.value / whole.value:.1f}",
                *(f"{value:.0f}" for value in shared.by_type(own).values()),
                f"{cells[text]['gflops']['total']:.2f}",
                _paper(table, one),
            ]
        )
    made.notes.append(
        f"{len(shared.questions)} questions, the same in every row; intervals and differences (in points) are "
        "bootstrapped over scenes, 95 %."
    )
    return made


def efficiency(
    table: Table, cells: Mapping[str, CellDocument], times: Mapping[str, Mapping[str, Any]], how: str
) -> Grid:
    """Table 5: times in ms and speed-ups.

    cells: by text form. times: as `times_of` reads them. how: a sentence about how they were taken.
    """
    made = _empty(table, ["ms a question", "speed-up", "paper's", "prefill ms", "speed-up", "paper's", "GFLOPs"])
    made.header[-1] = "paper's TFLOPs"
    made.better = {2: -1, 3: 1, 5: -1, 6: 1, 8: -1}
    for one in table.rows:
        text = pruner_of(table, one)
        assert text is not None, "every row of this table can be run"
        if text == "none":
            made.unranked.add(len(made.lines))
        made.groups.append(one.section)
        own = times[text]
        made.lines.append(
            [
                *_head(made, cells[text], one, text),
                f"{own['total']:.1f}",
                f"{own['total_speedup']:.2f}",
                f"{one.printed[1]:.1f}",
                f"{own['ttft']:.1f}",
                f"{own['ttft_speedup']:.2f}",
                f"{one.printed[3]:.1f}",
                f"{1000 * own['tflops']:.2f}",
                f"{one.printed[4]:.2f}",
            ]
        )
    made.notes.append(how)
    return made


def training(table: Table, cells: Mapping[str, CellDocument], runs: Mapping[str, Any]) -> Grid:
    """Table 6: accuracy of trained models, with the minutes of their training.

    cells: by text form, of the trained models. runs: the record of scripts/embedded/train_pruned.sh.
    """
    made = accuracy(table, cells)
    made.notes.pop(0)
    # Runs of other methods come after those of the table.
    seconds = {run["tokens"]: run["seconds"] for run in reversed(runs["rows"])}
    made.header[2:2] = ["minutes", "speed-up", "paper's"]
    made.better = {}  # each row has another model
    for line, one in zip(made.lines, table.rows, strict=True):
        own = seconds[int(one.section.split()[0])]
        line[2:2] = [f"{own / 60:.1f}", f"{seconds[PATCHES] / own:.2f}", f"{one.printed[1]:.1f}"]
    steps, threads = runs["rows"][0]["steps"], runs["hardware"]["threads"]
    made.notes.append(
        f"Stage 2 continued for {steps} steps of 8 scenes from the committed embedded model, tower frozen, {threads} "
        f"threads of an {runs['hardware']['cpu']}; each row is evaluated with the pruner it was trained with."
    )
    return made


def _empty(table: Table, columns: Sequence[str]) -> Grid:
    title = f"The embedded model, in the layout of the paper's table {table.number} ({table.title})"
    printed = table.averages[0] if table.averages else table.columns[-1].name
    made = Grid(title, ["tokens", "method", *columns, f"paper's {printed}"], left=2)
    if table.number in SHAPE:
        made.notes.append(SHAPE[table.number])
    return made


def _paper(table: Table, one: Row) -> str:
    value = one.average.get(table.averages[0]) if table.averages else one.printed[-1]
    return NOTHING if value is None else f"{value:.1f}"


def _head(made: Grid, cell: CellDocument, one: Row, text: str) -> list[str]:
    """Tokens of the language model, averaged over its layers for cuts inside it, and the method."""
    tokens = cell["tokens"]
    shown = f"{tokens['llm_inputs']:.0f}"
    if tokens["llm_inputs"] != tokens["llm"]:
        shown = made.mark(shown, "mean over the inputs of the language model's layers")
    return [shown, one.method]


def _not_run(made: Grid, one: Row, empty: int, printed: str) -> list[str]:
    return [NOTHING, made.mark(one.method, "reported, not run: no public code"), *[NOTHING] * (empty + 1), printed]
