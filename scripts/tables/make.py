"""Make a table of the paper: run what is missing, then write it as Markdown, CSV and HTML.

    python -m scripts.tables.make 1 --model liuhaotian/llava-v1.5-7b        (or: make table1 MODEL=...)
    python -m scripts.tables.make 7 --model embedded                        (minutes to an hour on a laptop)

Every number is a cell, one JSON under <results>/<model>/<benchmark>/ that knows where it comes from. What is there and
still true is not made again; what was interrupted goes on; a benchmark whose files are missing is left out and named.
The table lies in <results>/<model>/tables/. Paper, ours, difference and number of questions stand one below the other;
with the embedded model, which has a benchmark of its own, the table keeps its shape alone.

All GPUs in CUDA_VISIBLE_DEVICES share a benchmark's questions. Flags that are not listed here go to
`python -m llava.eval.launch` as they are (--judge-base-url, --dtype, --batch-size, ...).
"""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from llava.eval.benchmarks.registry import benchmark
from llava.mm_utils import get_model_name_from_path
from scripts.tables.cells.document import read_document
from scripts.tables.cells.embedded import embedded_grid
from scripts.tables.cells.produce import make_cell, missing_files
from scripts.tables.cells.spec import CellSpec
from scripts.tables.cells.times import EFFICIENCY, measure_times, times_of
from scripts.tables.cells.training import training_run
from scripts.tables.paper.spec import Column, Row, Table
from scripts.tables.render import against_paper
from scripts.tables.render.against_paper import Reading
from scripts.tables.render.grid import Grid

NUMBERS = range(1, 12)
EMBEDDED = ("embedded", "playground/embedded")


def table_of(number: int) -> Table:
    return importlib.import_module(f"scripts.tables.paper.table{number:02d}").TABLE


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("number", type=int, choices=NUMBERS, metavar="1..11", help="of the table in the paper")
    parser.add_argument("--model", help="checkpoint folder, Hub name, or embedded (default: the table's own)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where cells are (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=Path("playground/data/eval"), help="folder of all benchmarks")
    parser.add_argument("--limit", type=int, help="ask so many questions only (default: all; embedded: 500)")
    parser.add_argument("--columns", nargs="+", metavar="NAME", help="these columns only, as the paper heads them")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="these methods only, and the unpruned model")
    parser.add_argument("--render", action="store_true", help="run nothing; write the table from the cells there are")
    return parser


class Maker:
    """The numbers of one table for a 7B model.

    problems: what could not be made, a line each.
    """

    def __init__(self, table: Table, args: argparse.Namespace, launch_flags: Sequence[str]) -> None:
        self.table, self.args, self.flags = table, args, tuple(launch_flags)
        self.model: str = args.model or table.model
        self.problems: list[str] = []

    def wanted(self) -> list[tuple[int, Column]]:
        """(row, column) of every number asked for, the unpruned model and FlowCut first."""
        columns = [one for one in self.table.columns if not self.args.columns or one.name in self.args.columns]
        rows = [
            index
            for index, one in enumerate(self.table.rows)
            if one.pruner is not None
            and (one.pruner == "none" or not self.args.methods or one.method in self.args.methods)
        ]
        rows.sort(
            key=lambda index: (self.table.rows[index].pruner != "none", "FlowCut" not in self.table.rows[index].method)
        )
        return [(index, column) for column in columns for index in rows]

    def checkpoint(self, one: Row) -> str:
        """The model of a row: what was trained here, the row's own, or the table's."""
        if one.trained and Path(one.trained[-1]).is_dir() and one.pruner != "none":
            return one.trained[-1]
        return one.checkpoint or self.model

    def spec(self, one: Row, key: str) -> CellSpec:
        assert one.pruner is not None
        return CellSpec(
            family="v1_6" if one.checkpoint and "v1.6" in one.checkpoint else self.table.family,
            benchmark=key,
            model=self.checkpoint(one),
            pruner=one.pruner,
            out=self.args.results,
            limit=self.args.limit,
            data=self.args.data,
            flags=self.flags,
        )

    def readings(self) -> dict[tuple[int, str], Reading]:
        """Run what is missing, and read everything."""
        wanted = self.wanted()
        if not self.args.render:
            self.run([(index, column) for index, column in wanted if column.source == "cell"])
            if any(column.source == "efficiency" for _, column in wanted):
                self.run_times({index for index, _ in wanted})
        found = {(index, column.name): self.read(self.table.rows[index], column) for index, column in wanted}
        return {key: reading for key, reading in found.items() if reading is not None}

    def run(self, wanted: Sequence[tuple[int, Column]]) -> None:
        specs = [self.spec(self.table.rows[index], column.key) for index, column in wanted]
        lacking = {spec.benchmark: missing_files(spec) for spec in specs}
        for name, files in lacking.items():
            if files:
                self.problems.append(f"{name} is left out: {self.args.data} lacks {', '.join(files[:3])}")
        todo = {spec.file: spec for spec in specs if not lacking[spec.benchmark] and read_document(spec) is None}
        for number, spec in enumerate(todo.values(), start=1):
            print(f"[{number}/{len(todo)}] {spec.benchmark}, {spec.pruner}, {spec.model}", file=sys.stderr)
            self._try(partial(make_cell, spec))

    def run_times(self, rows: set[int]) -> None:
        by_model: dict[str, list[str]] = {}
        for index in sorted(rows):
            one = self.table.rows[index]
            assert one.pruner is not None
            by_model.setdefault(self.checkpoint(one), []).append(one.pruner)
        pope = benchmark("pope")
        try:
            split = pope.split()
            prepared = pope.prepare(pope.folder(self.args.data, split), split)
        except ValueError as error:
            self.problems.append(f"no times: {error}")
            return
        assert prepared.images is not None, "POPE's pictures are files"
        flags = ("--questions", str(self.args.limit or 500))
        for model, pruners in by_model.items():
            file = self.args.results / get_model_name_from_path(model) / EFFICIENCY
            arguments = (model, pruners, file, prepared.question_file, prepared.images, flags)
            self._try(partial(measure_times, *arguments))

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except ValueError as error:
            self.problems.append(str(error))

    def read(self, one: Row, column: Column) -> Reading | None:
        if column.source == "training":
            return self.trained(one, column.key)
        if column.source == "efficiency":
            assert one.pruner is not None
            times = times_of(self.args.results / get_model_name_from_path(self.checkpoint(one)) / EFFICIENCY)
            own = times.get(one.pruner)
            return None if own is None else Reading(own[column.key], int(own["questions"]))
        if column.source == "flops":
            cells = (read_document(self.spec(one, other.key)) for other in self.table.columns if other.source == "cell")
            known = [cell["gflops"][column.key] / 1000 for cell in cells if cell and cell["gflops"]]
            return Reading(known[0]) if known else None
        cell = read_document(self.spec(one, column.key))
        if cell is None:
            return None
        part = cell["parts"]
        for name in column.path:
            part = part[name]
        value = part["value"] if column.path else cell["value"]
        return None if value is None else Reading(value, cell["n"], tuple(cell["labels"]))

    def trained(self, one: Row, key: str) -> Reading | None:
        """Hours of a row's training, or how many times faster it was than the first row's."""
        try:
            own, first = (
                sum(training_run(Path(folder)).seconds for folder in row.trained) for row in (one, self.table.rows[0])
            )
        except ValueError:  # not trained here: the column stays empty
            return None
        return Reading(own / 3600 if key == "hours" else first / own)


def make(args: argparse.Namespace, launch_flags: Sequence[str]) -> tuple[Grid, str, list[str]]:
    """The table, the model's name, and what could not be made. Raises ValueError where nothing can be."""
    table = table_of(args.number)
    for given, known, flag in (
        (args.columns, {one.name for one in table.columns}, "--columns"),
        (args.methods, {one.method for one in table.rows}, "--methods"),
    ):
        if unknown := sorted(set(given or ()) - known):
            raise ValueError(f"{flag} {' '.join(unknown)}: table {table.number} has {', '.join(sorted(known))}")
    if args.model in EMBEDDED:
        if launch_flags or args.columns or args.methods:
            given = [*launch_flags, *(f"--{name}" for name in ("columns", "methods") if getattr(args, name))]
            raise ValueError(
                f"{' '.join(given)}: not with the embedded model, which takes --limit, --results and --render"
            )
        command = "python -m scripts.tables.make " + shlex.join([str(args.number), "--model", "embedded"])
        return embedded_grid(table, args.results, args.limit, args.render, command), "embedded", []
    maker = Maker(table, args, launch_flags)
    grid = against_paper.grid(table, maker.readings(), maker.model)
    return grid, get_model_name_from_path(maker.model), maker.problems


def main(argv: list[str] | None = None) -> None:
    args, launch_flags = build_parser().parse_known_args(argv)
    try:
        grid, name, problems = make(args, launch_flags)
    except ValueError as error:
        sys.exit(f"error: {error}")
    files = grid.write(args.results / name / "tables" / f"table{args.number:02d}")
    print(grid.markdown())
    print(json.dumps({"table": args.number, "model": name, "files": [str(file) for file in files]}))
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    if problems and not args.render:
        sys.exit(1)


if __name__ == "__main__":
    main()
