"""Question files: reading LLaVA's JSON lines with checks for bad rows, subsets and chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.given import json_lines, parse_json, read_each

EMBEDDED = Path("playground/data/embedded")
Item = TypeVar("Item")
Row = TypeVar("Row")


class Question(NamedTuple):
    """One question for the model.

    images: paths relative to the image folder, or the bytes of picture files; none, one or several.
    text: the question with its answer suffix, without `<image>`.
    prompt: the prompt in the answer line, if it is not `text`.
    extra: further keys of the answer line.
    """

    question_id: int | str
    images: tuple[str | bytes, ...]
    text: str
    prompt: str = ""
    extra: Mapping[str, Any] = {}

    @property
    def recorded(self) -> str:
        return self.prompt or self.text

    @property
    def key(self) -> tuple[int | str, str]:
        """The key of the question's answer line; ids alone repeat in some benchmarks (MME)."""
        return self.question_id, self.recorded


class Problem(NamedTuple):
    """The reason why a question could not be answered; `where` names the row or the question."""

    where: str
    what: str


def read_questions(path: str | Path) -> tuple[list[Question], list[Problem]]:
    """The valid rows in order, and the problems of the others. Raises ValueError when there is no such file."""
    try:
        lines = list(json_lines(path, "question file"))
    except ValueError as error:
        raise ValueError(f"{error}: a JSON-lines file with question_id, image and text") from error
    return read_rows(((f"{Path(path).name} line {number}", line) for number, line in lines), _question)


def read_rows(rows: Iterable[tuple[str, Row]], read: Callable[[Row], Item]) -> tuple[list[Item], list[Problem]]:
    """What `read` makes of the rows, given as (where, row), and the problems of those that it cannot use."""
    good, bad = read_each(rows, read)
    return good, [Problem(where, what) for where, what in bad]


def _question(line: bytes) -> Question:
    row = parse_json(line)
    if not isinstance(row, dict):
        raise ValueError("is not a JSON object")
    if missing := [key for key in ("question_id", "image", "text") if key not in row]:
        raise ValueError(f"has no {' and no '.join(missing)}")
    for key, kinds in (("question_id", (int, str)), ("text", (str,))):
        if not isinstance(row[key], kinds) or isinstance(row[key], bool) or row[key] == "":
            raise ValueError(f"{key}={row[key]!r} is not {'a number or text' if len(kinds) == 2 else 'text'}")
    if DEFAULT_IMAGE_TOKEN in row["text"]:
        raise ValueError(f"its text contains {DEFAULT_IMAGE_TOKEN}, which is added to every question automatically")
    return Question(row["question_id"], image_names(row["image"]), row["text"])


def image_names(value: Any) -> tuple[str, ...]:
    """A row's image paths: one, a list of them, or null for none. Raises ValueError, one line, for anything else."""
    names = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"image={str(value)[:80]!r} is not text, a list of texts, or null")
    return tuple(names)


def subset(items: Sequence[Item], limit: int | None) -> list[Item]:
    """`limit` items spread evenly over all, always the same ones; all of them for None or a large limit."""
    if limit is None or limit >= len(items):
        return list(items)
    if limit < 1:
        raise ValueError(f"limit={limit} leaves no question; give a number >= 1, or none for all")
    return [items[index * len(items) // limit] for index in range(limit)]


def chunk(items: Sequence[Item], chunks: int, index: int) -> list[Item]:
    """The `index`-th (from 0) of `chunks` contiguous pieces of ceil(len/chunks); late ones may be empty."""
    if not 0 <= index < chunks:
        raise ValueError(f"chunk {index} of {chunks} does not exist; the index runs from 0 to {chunks - 1}")
    size = math.ceil(len(items) / chunks)
    return list(items[index * size : (index + 1) * size])


def questions_of(file: Path | None, images: Path | None, limit: int) -> tuple[list[Question], Path, Path]:
    """Questions spread evenly over a file, the folder of their pictures, and the file itself.

    file: None uses the embedded benchmark. images: the pictures' folder. limit: how many questions.

    Raises ValueError, one line, for a file that is missing or has bad rows.
    """
    if file is None:
        file, images = EMBEDDED / "questions.jsonl", images or EMBEDDED / "images"
        if not file.is_file():
            raise ValueError(f"{file} does not exist; make it by python -m scripts.embedded.data --out {EMBEDDED}")
    rows, problems = read_questions(file)
    if problems:
        raise ValueError(f"{problems[0].where}: {problems[0].what}; correct it, or give another question file")
    return subset(rows, limit), images or Path(), file
