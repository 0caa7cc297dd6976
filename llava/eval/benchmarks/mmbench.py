"""MMBench, dev: multiple choice, circular: a question counts only if it is right in every rotation of its options.

Rotations are separate rows whose index is the question's plus k x 1,000,000. Dev's answers are in the table, so it
is scored here by MMBench's own matching rule (`llava.eval.metrics.option_letter`). Answers that do not match are wrong;
the server would use a language model for them.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llava.eval.benchmarks.answer_formats import with_options
from llava.eval.benchmarks.contract import Benchmark, Need, Split
from llava.eval.benchmarks.tally import by_part, counts, percent, percents
from llava.eval.files import Row, field_of, is_empty, read_table
from llava.eval.metrics.option_letter import infer_option
from llava.eval.sample import Sample, Score, scored

ROTATION = 1_000_000
NOT_SUBMITTED = frozenset({"hint", "category", "source", "image", "comment", "l2-category"})
PREDICTION_COLUMN = 6
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")  # characters that are not allowed in xlsx files


def options_of(row: Row) -> dict[str, str]:
    """Letter -> text, up to the first option that is missing."""
    options = {}
    for letter in "ABCD":
        if is_empty(row.get(letter)):
            break
        options[letter] = row[letter]
    return options


def question_of(row: Row) -> str:
    """The prompt without the request for the letter: hint, question, options."""
    hint = [] if is_empty(row.get("hint")) else [row["hint"]]
    return with_options("\n".join([*hint, row["question"]]), list(options_of(row).values()))


def base_index(row: Row) -> int:
    """The question that a row is a rotation of."""
    return int(row["question_id"]) % ROTATION


def table(file: Path) -> Iterator[Row]:
    """The rows of MMBench's table without their pictures, `question_id` being the index."""
    for row in read_table(file):
        index = field_of(row, "index", str(file))
        if not str(index).isdecimal():
            raise ValueError(f"{file} has the index {index!r}, which is not a number; download the table again")
        yield {"question_id": int(index), **{name: cell for name, cell in row.items() if name != "image"}}


def build(folder: Path, split: Split) -> list[Row]:
    """The table is the question file; these are its rows with the prompt of the question."""
    return [{**row, "text": question_of(row)} for row in table(folder / split.question_file)]


def load(folder: Path, split: Split, rows: list[Row]) -> list[Sample]:
    return [
        Sample(
            row["question_id"],
            (str(row["question_id"]),),
            None if is_empty(row.get("answer")) else row["answer"],
            {
                "question": base_index(row),
                "category": None if is_empty(row.get("category")) else row["category"],
                "l2-category": None if is_empty(row.get("l2-category")) else row["l2-category"],
            },
            options_of(row),
        )
        for row in rows
    ]


def answer_key(row: Row) -> Hashable:
    if row.get("round_id", 0):
        raise ValueError(
            f"question {row['question_id']} was asked in several rounds (--all-rounds); the table holds its rotations "
            f"already, so answer every row once"
        )
    return str(row["question_id"])


def score(sample: Sample) -> Score:
    return scored(sample, lambda text: infer_option(text, sample.extra))


def circular(scores: Sequence[Score]) -> list[Score]:
    """One score per question: right if every rotation is right; None if a rotation has no score."""
    whole = []
    for own in by_part(scores, "question").values():
        values = [one.value for one in own]
        base = min(own, key=lambda one: int(one.question_id))
        value = None if None in values else float(all(values))
        whole.append(base._replace(value=value, answered=all(one.answered for one in own)))
    return whole


def aggregate(scores: Sequence[Score]) -> dict[str, Any]:
    """Circular accuracy over questions, overall, per category and L2; also the plain share of right rows."""
    whole = circular(scores)
    parts = {
        "rows": {"accuracy": percent(scores)},
        "l2-category": percents(whole, "l2-category"),
        "category": percents(whole, "category"),
    }
    return {"main": percent(whole)["value"], **counts(whole), "parts": parts}


def submission(file: Path, predictions: dict[int, str]) -> list[list[Any]]:
    """The server's table, header first: the required columns of the rows, and a column `prediction`.

    predictions: index -> answer; a row without one has an empty cell.
    """
    lines: list[list[Any]] = []
    for row in table(file):
        cells = {name: cell for name, cell in row.items() if name not in NOT_SUBMITTED and name != "question_id"}
        if not lines:
            header = list(cells)
            lines.append([*header[:PREDICTION_COLUMN], "prediction", *header[PREDICTION_COLUMN:]])
        values = [None if is_empty(cell) else cell for cell in cells.values()]
        values[list(cells).index("index")] = row["question_id"]
        lines.append([*values[:PREDICTION_COLUMN], predictions.get(row["question_id"]), *values[PREDICTION_COLUMN:]])
    return lines


def write_xlsx(lines: Sequence[Sequence[Any]], file: Path) -> None:
    """A workbook of one sheet. Raises ValueError where openpyxl is not installed."""
    try:
        from openpyxl import Workbook
    except ImportError as error:
        raise ValueError("writing xlsx needs openpyxl; pip install 'llava-flowcut[eval]'") from error
    book = Workbook()
    sheet = book.active
    for number, line in enumerate(lines, start=1):
        for column, value in enumerate(line, start=1):
            cell = sheet.cell(number, column)
            cell.value = _CONTROL.sub("", value) if isinstance(value, str) else value
            if cell.data_type == "f":
                cell.data_type = "s"  # an answer that begins with = is not a formula
    file.parent.mkdir(parents=True, exist_ok=True)
    book.save(file)


def export(folder: Path, split: Split, samples: Sequence[Sample], stem: Path) -> Path:
    file = stem.with_name(stem.name + ".xlsx")
    said = {int(one.question_id): one.text for one in samples if one.text is not None}
    write_xlsx(submission(folder / split.question_file, said), file)
    return file


def write(rows: list[Row], file: Path, whole: Path) -> None:
    """The chosen rows of the whole table, pictures included."""
    chosen = {row["question_id"] for row in rows}
    part = file.with_name(file.name + ".part")
    with part.open("w", encoding="utf-8", newline="") as target:
        writer = None
        for row in read_table(whole):
            if writer is None:
                writer = csv.DictWriter(target, list(row), delimiter="\t", lineterminator="\n")
                writer.writeheader()
            if int(row["index"]) in chosen:
                writer.writerow(row)
    part.replace(file)


def dev(name: str, table_name: str, published: int | None, label: str = "") -> Split:
    """A split whose question file is a table from OpenMMLab."""
    source = f"https://download.openmmlab.com/mmclassification/datasets/mmbench/{table_name}"
    need = Need((table_name,), "questions, pictures and answers", source, gigabytes=0.14)
    return Split(name, table_name, (), (need,), published, label)


def benchmark(name: str, title: str, folders: tuple[str, ...], splits: tuple[Split, ...], paper: float) -> Benchmark:
    """MMBench in one of its languages."""
    return Benchmark(
        name=name,
        title=title,
        folders=folders,
        splits=splits,
        metric="circular accuracy",
        reported="circular accuracy on dev",
        paper=paper,
        program="mmbench",
        max_new_tokens=1024,
        build=build,
        load=load,
        score=score,
        aggregate=aggregate,
        answer_key=answer_key,
        group=base_index,
        export=export,
        write=write,
    )


BENCHMARK = benchmark(
    "mmbench",
    "MMBench",
    ("mmbench",),
    (
        dev("dev", "mmbench_dev_20230712.tsv", 4377),
        dev("dev_en_20231003", "mmbench_dev_en_20231003.tsv", None, "table of 2023-10-03"),
    ),
    64.7,
)
