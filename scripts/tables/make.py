"""Make a table of the paper: measure missing cells, then write it as Markdown, CSV and HTML.

    python -m scripts.tables.make 1 --model-path liuhaotian/llava-v1.5-7b        (or: make table1 MODEL=...)
    python -m scripts.tables.make 7 --model-path embedded                        (minutes to an hour on a laptop)

Every number is a cell, one JSON file under <results>/<model>/<benchmark>/ with its origin. Up-to-date cells
are not measured again, and interrupted ones are continued. Benchmarks without files are left out and named.
The table is in <results>/<model>/tables/. Paper, ours, difference and number of questions are consecutive lines;
with the embedded model, which has its own benchmark, only the table's layout is the same.

All GPUs in CUDA_VISIBLE_DEVICES share a benchmark's questions. Flags that are not listed here go to
`python -m llava.eval.launch` as they are (--judge-base-url, --dtype, --batch-size, ...).
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from flowcut.cli.command_line import Parser, parse_first, program
from llava.given import HUB_NAME, home_path
from scripts.tables.paper.tables import NUMBERS, table_of
from scripts.tables.render.grid import Grid


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("number", type=int, choices=NUMBERS, metavar="1..11", help="of the table in the paper")
    parser.add_argument(
        "--model-path",
        also=["--model"],
        dest="model",
        help="checkpoint folder, Hub name, or embedded (default: the table's own)",
    )
    parser.add_argument("--results", type=Path, default=Path("results"), help="where cells are (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=Path("playground/data/eval"), help="folder of all benchmarks")
    parser.add_argument("--limit", type=int, help="number of questions (default: all; embedded: 500)")
    parser.add_argument("--columns", nargs="+", metavar="NAME", help="only these columns, by the paper's headings")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these methods, and the unpruned model")
    parser.add_argument("--dry-run", action="store_true", help="run nothing; list what is missing, with its source")
    parser.add_argument("--render", action="store_true", help="run nothing; write the table from existing cells")
    parser.add_argument("--latex", action="store_true", help="print LaTeX (booktabs) and write it to a .tex file too")
    return parser


parse_first(__name__, build_parser, others=True)

from llava.eval.dry_run import report_missing
from llava.mm_utils import get_model_name_from_path
from scripts.tables.cells.embedded import make_missing
from scripts.tables.cells.table_cells import TableCells
from scripts.tables.paper.spec import Table
from scripts.tables.render import against_paper
from scripts.tables.render.embedded_grid import embedded_grid

EMBEDDED = ("embedded", "playground/embedded")


def make(args: argparse.Namespace, launch_flags: Sequence[str]) -> tuple[Grid, str, list[str]]:
    """The table, the model's name, and the problems.

    Raises:
        ValueError: nothing can be made.
    """
    table = table_of(args.number)
    if args.model in EMBEDDED:
        return _on_embedded_model(table, args, launch_flags), "embedded", []
    cells = cells_of(args, launch_flags)
    if not args.render:
        refuse_absent(cells.model)
        cells.make_missing()
    found = cells.read()
    if not found:
        why = "".join(f"; {problem}" for problem in cells.problems[:1])
        raise ValueError(f"no number of {cells.model} is in {args.results}, so no table is written{why}")
    return against_paper.grid(table, found, cells.model), get_model_name_from_path(cells.model), cells.problems


def cells_of(args: argparse.Namespace, launch_flags: Sequence[str]) -> TableCells:
    """The table's cells, as the flags choose them. Raises ValueError for names that the table does not have."""
    table = table_of(args.number)
    for given, known, flag in (
        (args.columns, {one.name for one in table.columns}, "--columns"),
        (args.methods, {one.method for one in table.rows}, "--methods"),
    ):
        if unknown := sorted(set(given or ()) - known):
            raise ValueError(f"{flag} {' '.join(unknown)}: table {table.number} has {', '.join(sorted(known))}")
    return TableCells(
        table,
        model=args.model or table.model,
        results=args.results,
        data=args.data,
        limit=args.limit,
        columns=args.columns or (),
        methods=args.methods or (),
        flags=tuple(launch_flags),
    )


def dry_run(args: argparse.Namespace, launch_flags: Sequence[str]) -> int:
    """Print what the table's benchmarks and models lack, with sources and sizes, and about how long the rest takes.

    Returns how many benchmarks lack files.
    """
    cells = cells_of(args, launch_flags)
    refuse_absent(cells.model)
    missing, sizes, questions = report_missing(spec.evaluation for spec in cells.needed())
    print(f"estimate: {cells.forecast(questions)}; several GPUs share the questions")
    document = {"table": args.number, "model": cells.model, "benchmarks": list(questions), "missing": missing}
    print(json.dumps({**document, "sizes": sizes}))
    return len(missing)


def refuse_absent(model: str) -> None:
    """Raise ValueError, one line, for a model that is neither a folder nor a name of the Hub."""
    if not home_path(model).is_dir() and not HUB_NAME.fullmatch(model):
        raise ValueError(f"--model-path {model} is not a folder; give a checkpoint's folder, a Hub name, or embedded")


def _on_embedded_model(table: Table, args: argparse.Namespace, launch_flags: Sequence[str]) -> Grid:
    given = [*launch_flags, *(f"--{name}" for name in ("columns", "methods") if getattr(args, name))]
    if given:
        raise ValueError(
            f"{' '.join(given)}: not with the embedded model, which takes --limit, --results, --render and --latex"
        )
    if not args.render:
        command = "python -m scripts.tables.make " + shlex.join([str(args.number), "--model-path", "embedded"])
        make_missing(table, args.results, args.limit, command)
    return embedded_grid(table, args.results)


@program
def main(argv: list[str] | None = None) -> None:
    args, launch_flags = build_parser().parse_known_args(argv)
    if args.dry_run:
        if args.model in EMBEDDED:
            raise ValueError("--dry-run: the embedded model draws its own benchmark, so no file is needed")
        sys.exit(1 if dry_run(args, launch_flags) else 0)
    grid, name, problems = make(args, launch_flags)
    files = grid.write(args.results / name / "tables" / f"table{args.number:02d}", args.latex)
    print(grid.latex() if args.latex else grid.markdown())
    print(json.dumps({"table": args.number, "model": name, "files": [str(file) for file in files]}))
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    if problems and not args.render:
        sys.exit(1)


if __name__ == "__main__":
    main()
