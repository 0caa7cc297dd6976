"""The numbers of one of the paper's tables: what is missing is measured, and everything is read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from llava.eval.benchmarks.registry import benchmark
from llava.mm_utils import get_model_name_from_path
from scripts.tables.cells.document import read_document
from scripts.tables.cells.measured import Measured
from scripts.tables.cells.plan import Work, answer_times, estimate, plan_of
from scripts.tables.cells.produce import make_cell, missing_files
from scripts.tables.cells.spec import CellSpec
from scripts.tables.cells.times import EFFICIENCY, measure_times, times_of
from scripts.tables.cells.training import training_run
from scripts.tables.paper.spec import Column, Row, Table

_TIMED = 500  # questions


@dataclass
class TableCells:
    """Cells, times and training runs of a table.

    Attributes:
        model: checkpoint folder or Hub name of the rows that name no other.
        results: root of results.
        data: folder of all benchmarks.
        limit: number of questions; None for all, and for 500 where times are taken.
        columns: names of the columns asked for; empty for all.
        methods: names of the methods asked for; empty for all. The unpruned model always belongs to them.
        flags: further flags of `python -m llava.eval.launch`.
        problems: what could not be measured, a line each.
    """

    table: Table
    model: str
    results: Path
    data: Path
    limit: int | None = None
    columns: Sequence[str] = ()
    methods: Sequence[str] = ()
    flags: tuple[str, ...] = ()
    problems: list[str] = field(default_factory=list)

    def wanted(self) -> list[tuple[int, Column]]:
        """(index of the row, column) of every number asked for, the unpruned model and FlowCut first."""
        rows = self.table.rows
        columns = [one for one in self.table.columns if not self.columns or one.name in self.columns]
        indices = [
            index
            for index, one in enumerate(rows)
            if one.pruner is not None and (one.pruner == "none" or not self.methods or one.method in self.methods)
        ]
        indices.sort(key=lambda index: (rows[index].pruner != "none", "FlowCut" not in rows[index].method))
        return [(index, column) for column in columns for index in indices]

    def needed(self) -> list[CellSpec]:
        """Everything that is asked of a model: the cells, and 500 questions of POPE a row where times are taken."""
        wanted = self.wanted()
        cells = [self.spec(self.table.rows[index], one.key) for index, one in wanted if one.source == "cell"]
        timed = sorted({index for index, one in wanted if one.source == "efficiency"})
        return cells + [
            replace(self, limit=self.limit or _TIMED).spec(self.table.rows[index], "pope") for index in timed
        ]

    def forecast(self, questions: Mapping[str, int]) -> str:
        """About how long what is missing takes. questions: of each benchmark, whose files may be missing too."""
        every = {spec.file: spec for spec in self.needed()}.values()
        todo = [spec for spec in every if read_document(spec) is None and not self._is_timed(spec)]
        works = [
            Work(spec, min(spec.limit or questions[spec.benchmark], questions[spec.benchmark]), ()) for spec in todo
        ]
        return plan_of(works, self._times_there(every))

    def _is_timed(self, spec: CellSpec) -> bool:
        """Whether a row has no cells, and its times are there."""
        only_times = all(one.source != "cell" for one in self.table.columns)
        return only_times and spec.pruner in times_of(self._times_file(spec.model))

    def make_missing(self) -> None:
        """Measure what is missing. What fails is noted in `problems`, and the rest is measured nevertheless."""
        wanted = self.wanted()
        self._make_cells([self.spec(self.table.rows[index], one.key) for index, one in wanted if one.source == "cell"])
        if any(column.source == "efficiency" for _, column in wanted):
            self._measure_times([self.table.rows[index] for index in sorted({index for index, _ in wanted})])

    def read(self) -> dict[tuple[int, str], Measured]:
        """Every number asked for that is there, by the index of its row and the name of its column."""
        found = {(index, column.name): self._read(self.table.rows[index], column) for index, column in self.wanted()}
        return {key: measured for key, measured in found.items() if measured is not None}

    def checkpoint(self, row: Row) -> str:
        """The model of a row: what was trained here, the row's own, or the table's."""
        if row.trained and Path(row.trained[-1]).is_dir() and row.pruner != "none":
            return row.trained[-1]
        return row.checkpoint or self.model

    def spec(self, row: Row, key: str) -> CellSpec:
        """The cell of a row on the benchmark `key`."""
        assert row.pruner is not None
        return CellSpec(
            family="v1_6" if row.checkpoint and "v1.6" in row.checkpoint else self.table.family,
            benchmark=key,
            model=self.checkpoint(row),
            pruner=row.pruner,
            out=self.results,
            limit=self.limit,
            data=self.data,
            flags=self.flags,
        )

    def _make_cells(self, specs: Sequence[CellSpec]) -> None:
        lacking = {spec.benchmark: missing_files(spec) for spec in specs}
        for name, files in lacking.items():
            if files:
                self.problems.append(f"{name} is left out: {self.data} lacks {', '.join(files[:3])}")
        todo = {spec.file: spec for spec in specs if not lacking[spec.benchmark] and read_document(spec) is None}
        if todo:
            works = [Work.of(spec) for spec in todo.values()]
            done = self._times_there(spec for spec in specs if spec.file not in todo)
            print(plan_of(works, done), file=sys.stderr)
        for number, spec in enumerate(todo.values(), start=1):
            work = Work.of(spec)
            others = self._times_there(one for one in specs if one.file != spec.file)
            print(f"[{number}/{len(todo)}] {work}; {estimate([work], others)}", file=sys.stderr)
            self._try(partial(make_cell, spec))

    def _times_there(self, specs: Iterable[CellSpec]) -> dict[str, list[float]]:
        """Milliseconds of the answers that these cells have, by model."""
        times: dict[str, list[float]] = {}
        for spec in {one.file: one for one in specs}.values():
            times.setdefault(spec.model, []).extend(answer_times(spec.evaluation.answers_folder))
        return times

    def _measure_times(self, rows: Sequence[Row]) -> None:
        by_model: dict[str, list[str]] = {}
        for row in rows:
            assert row.pruner is not None
            by_model.setdefault(self.checkpoint(row), []).append(row.pruner)
        pope = benchmark("pope")
        try:
            split = pope.split()
            prepared = pope.prepare(pope.folder(self.data, split), split)
        except ValueError as error:
            self.problems.append(f"no times: {error}")
            return
        assert prepared.images is not None, "POPE's pictures are files"
        flags = ("--questions", str(self.limit or _TIMED))
        for model, pruners in by_model.items():
            arguments = (model, pruners, self._times_file(model), prepared.question_file, prepared.images, flags)
            self._try(partial(measure_times, *arguments))

    def _times_file(self, model: str) -> Path:
        return self.results / get_model_name_from_path(model) / EFFICIENCY

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except ValueError as error:
            self.problems.append(str(error))

    def _read(self, row: Row, column: Column) -> Measured | None:
        if column.source == "training":
            return self._trained(row, column.key)
        if column.source == "efficiency":
            assert row.pruner is not None
            own = times_of(self._times_file(self.checkpoint(row))).get(row.pruner)
            return None if own is None else Measured(own[column.key], int(own["questions"]))
        if column.source == "flops":
            cells = (read_document(self.spec(row, one.key)) for one in self.table.columns if one.source == "cell")
            known = [cell["gflops"][column.key] / 1000 for cell in cells if cell and cell["gflops"]]
            return Measured(known[0]) if known else None
        cell = read_document(self.spec(row, column.key))
        if cell is None:
            return None
        part = cell["parts"]
        for name in column.path:
            part = part[name]
        value = part["value"] if column.path else cell["value"]
        return None if value is None else Measured(value, cell["n"], tuple(cell["labels"]))

    def _trained(self, row: Row, key: str) -> Measured | None:
        """Hours of a row's training, or how many times faster it was than the first row's."""
        try:
            own, first = (
                sum(training_run(Path(folder)).seconds for folder in one.trained) for one in (row, self.table.rows[0])
            )
        except ValueError:  # not trained here: the column stays empty
            return None
        return Measured(own / 3600 if key == "hours" else first / own)
