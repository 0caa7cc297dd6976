"""Measure a method's accuracy on the embedded benchmark, and print it next to the committed rows of the same budget.

    flowcut evaluate my.py:KeyNorm --budget 64               a class in a file, which is executed
    flowcut evaluate divprune --budget 64                    a method by its name
    flowcut evaluate flowcut:interval=3 --budget 64 32       with settings, at two budgets

The model and the benchmark are this repository's own, so the command needs its folder; the benchmark's pictures are
drawn if they are missing. Committed files are not changed: answers and numbers go to --out. Differences are taken
question by question, over the questions that both have answered, and their intervals are bootstrapped over scenes; an
interval that includes 0 is not significant. The last line is one JSON document.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowcut.cli.command_line import Parser, parse_first, program
from llava.eval.models.reply import DTYPES
from llava.given import read_json

COMMITTED = Path("results/embedded")


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("method", help="FILE.py:Class, a name of `flowcut list`, or one with settings")
    parser.add_argument("--budget", type=int, nargs="+", default=[64], help="visual tokens to keep (default: 64)")
    parser.add_argument("--limit", type=int, help="number of questions, spread evenly (default: all 1000)")
    parser.add_argument("--model-path", default="playground/embedded", help="(default: %(default)s)")
    parser.add_argument("--data", type=Path, default=Path("playground/data/embedded"), help="the benchmark's folder")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluate"), help="(default: %(default)s)")
    parser.add_argument("--device", help="default: CUDA where there is one")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="as the committed rows (default: float32)")
    return parser


parse_first(__name__, build_parser)

from flowcut.plugins import load_file
from flowcut.registry import parse_pruner, register
from llava.eval.models.llava_checkpoint import load_checkpoint
from scripts.embedded import data
from scripts.embedded.rows import all_rows
from scripts.tables.cells.file_names import cell_name
from scripts.tables.cells.in_process import Cell, Plan, Setup, measure, report
from scripts.tables.cells.paired import Shared
from scripts.tables.render.grid import NOTHING


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 where a question could not be answered."""
    args = build_parser().parse_args(argv)
    texts = [text_of(args.method, budget) for budget in args.budget]
    checkpoint = load_checkpoint(args.model_path, device=args.device, dtype=args.dtype, default_mode="vicuna_v1")
    if not (args.data / "answers.jsonl").is_file():
        print(f"drawing the benchmark's pictures into {args.data}", file=sys.stderr)
        data.main(["--out", str(args.data), "--split", "test"])
    typed = "flowcut evaluate " + " ".join(sys.argv[1:] if argv is None else argv)
    # A file's code may have changed since it was measured, so nothing of an earlier run is used.
    setup = Setup(checkpoint, args.data, args.out, args.limit, 1, True, typed)
    plans = [Plan(setup, Cell("embedded", text)) for text in texts]
    cells, problems = measure(plans)
    report(problems)
    told = []
    for budget, cell in zip(args.budget, cells, strict=True):
        others = committed(plans[0], budget)
        print(table(cell, others))
        told.append({name: cell[name] for name in ("pruner", "budget", "n", "accuracy", "ci95", "missing")})
        told[-1]["committed_rows"] = len(others)
    print(json.dumps({"model": cells[0]["model"], "rows": told, "out": str(args.out)}))
    return 1 if problems else 0


def text_of(method: str, budget: int) -> str:
    """The pruner's text at a budget. A class in a file is executed and registered.

    Raises:
        ValueError: there is no such method, or it does not take the budget.
    """
    if method.endswith(".py") or ".py:" in method:
        method = register(load_file(method)).name
    if "budget=" in method:
        raise ValueError(f"{method} has a budget; give it by --budget {budget}")
    text = f"{method}{',' if ':' in method else ':'}budget={budget}"
    parse_pruner(text)
    return text


def committed(plan: Plan, budget: int) -> list[dict[str, Any]]:
    """The committed cells of a budget, and the unpruned one, that are of the same weights and data."""
    names = ["none", *(cell_name(text) for text in all_rows(budget))]
    found = [read_json(file) for name in names if (file := COMMITTED / f"{name}.json").is_file()]
    origins = {limit: plan.origin(limit) for limit in {one["limit"] for one in found}}
    return [one for one in found if origins[one["limit"]].items() <= one["identity"].items()]


def table(cell: dict[str, Any], others: Sequence[dict[str, Any]]) -> str:
    """Rows by accuracy, best first; the new one is marked."""
    wide = max(len(one["pruner"]) for one in (cell, *others))
    rows = [(cell["accuracy"] or 0.0, _row(cell, wide, new=True))]
    for other in others:
        difference = ""
        if cell["n"]:
            shared = Shared.of([other, cell])
            difference = f"{shared.difference(0, 1).signed} on {len(shared.questions)} questions"
        rows.append((other["accuracy"], _row(other, wide, difference)))
    rows.sort(key=lambda row: -row[0])
    head = f"  {'method':{wide}}  tokens  accuracy  95 % interval      n  difference to the new row"
    lines = [f"budget {cell['budget']}; tokens: mean over the language model's layers", "", head]
    lines += [line for _, line in rows]
    if not others:
        lines += ["", f"No row in {COMMITTED} is of this model and these questions."]
    return "\n".join(lines) + "\n"


def _row(cell: dict[str, Any], wide: int, difference: str = NOTHING, new: bool = False) -> str:
    interval = "-".join(f"{100 * end:.1f}" for end in cell["ci95"] or ())
    accuracy = NOTHING if cell["accuracy"] is None else f"{100 * cell['accuracy']:.1f}"
    name = "no pruning" if cell["pruner"] == "none" else cell["pruner"]
    mark = "> " if new else "  "
    tokens = cell["tokens"]["llm_inputs"]
    return f"{mark}{name:{wide}}  {tokens:6.0f}  {accuracy:>8}  {interval:13}  {cell['n']:5}  {difference}"


if __name__ == "__main__":
    sys.exit(main())
