"""The structure of the paper's tables. `table01.py` to `table11.py` in this folder have their data.

Numbers are the paper's as printed (arXiv 2505.19536), "-" where it has none. A row names the pruner to measure it with,
or none for methods without public code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from flowcut.registry import parse_pruner

Source = Literal["cell", "efficiency", "flops", "training"]


@dataclass(frozen=True)
class Column:
    """One measured quantity.

    Attributes:
        name: the paper's heading.
        source: a benchmark's cell; the efficiency bench; floating point operations of any of the row's cells; a
            training run's record.
        key: the benchmark, for cells; else the key in the record.
        path: of the number in a cell's parts; empty for the benchmark's main number.
        average: the mean of ratios to the unpruned model that includes it; empty for none.
        digits: after the decimal point.
    """

    name: str
    source: Source
    key: str
    path: tuple[str, ...] = ()
    average: str = "Avg"
    digits: int = 1


def benchmark(name: str, key: str, digits: int = 1, average: str = "Avg", path: tuple[str, ...] = ()) -> Column:
    return Column(name, "cell", key, path, average, digits)


def measured(name: str, source: Source, key: str, digits: int = 1) -> Column:
    return Column(name, source, key, (), "", digits)


BENCHMARKS = {
    one.name: one
    for one in (
        benchmark("GQA", "gqa"),
        benchmark("MMB", "mmbench"),
        benchmark("MMB-CN", "mmbench_cn"),
        benchmark("MME", "mme", digits=0),
        benchmark("POPE", "pope"),
        benchmark("SQA", "sqa"),
        benchmark("VQAv2", "vqav2"),
        benchmark("TextVQA", "textvqa"),
        benchmark("VizWiz", "vizwiz"),
        benchmark("SEED", "seed"),
        benchmark("MM-Vet", "mmvet"),
        benchmark("LLaVA-B", "llavabench"),
        benchmark("AI2D", "ai2d"),
        benchmark("MMMU", "mmmu"),
    )
}


def benchmarks(names: str) -> tuple[Column, ...]:
    """Columns of benchmarks, by the names above, separated by spaces."""
    return tuple(BENCHMARKS[name] for name in names.split())


@dataclass(frozen=True)
class Row:
    """One method at one budget.

    Attributes:
        method: as the paper names it.
        pruner: its text form; None for "reported, not run".
        printed: the columns' numbers, in order; None where the paper has none.
        section: heading above the row, such as "192 tokens".
        average: the averages that the paper prints, by their names.
        embedded: text form on the embedded model; None for `pruner` with the budget scaled to 576.
        checkpoint: the model, if it is not the table's.
        of: visual tokens of a picture in that model.
        trained: folders of the training runs of a trained row, its checkpoint last.
    """

    method: str
    pruner: str | None
    printed: tuple[float | None, ...]
    section: str = ""
    average: dict[str, float] = field(default_factory=dict)
    embedded: str | None = None
    checkpoint: str | None = None
    of: int | None = None
    trained: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for text in (self.pruner, self.embedded):
            if text is not None:
                parse_pruner(text)


def row(method: str, pruner: str | None, printed: str, section: str = "", **more: object) -> Row:
    """A row with its numbers as one text in the order of the columns; "Avg=95.1" at the end is the printed average."""
    words = printed.split()
    averages = {name: float(value) for name, _, value in (word.partition("=") for word in words if "=" in word)}
    numbers = tuple(None if word == "-" else float(word) for word in words if "=" not in word)
    return Row(method, pruner, numbers, section, averages, **more)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Table:
    """One table of the paper.

    Attributes:
        family: folder of `scripts/` whose evaluation scripts measure it.
        model: the paper's.
        tokens: visual tokens of a picture (or video frame) in the unpruned model.
        misprints: (section, method, column) -> the inconsistency of the printed number.
        notes: about the whole table.
    """

    number: int
    title: str
    family: str
    model: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    tokens: int = 576
    misprints: dict[tuple[str, str, str], str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for one in self.rows:
            if len(one.printed) != len(self.columns):
                raise ValueError(f"table {self.number}: {one.method} has {len(one.printed)} numbers")
        unknown = [key for key in self.misprints if not any(key[:2] == (one.section, one.method) for one in self.rows)]
        if unknown:
            raise ValueError(f"table {self.number}: misprints of rows that are not there: {unknown}")

    @property
    def averages(self) -> tuple[str, ...]:
        """The averages that the paper prints."""
        return tuple(dict.fromkeys(name for one in self.rows for name in one.average))

    def upper(self, number: int) -> int:
        """The unpruned row that row `number` is compared with: the last one above it, or itself."""
        return max(index for index, other in enumerate(self.rows[: number + 1]) if other.pruner == "none")
