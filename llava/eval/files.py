"""Reading and writing JSON, JSON lines and tables. Errors are one line and name file and position."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llava.given import BOM, json_lines, one_line, parse_json, read_bytes
from llava.given import read_json as read_json

Row = dict[str, Any]
_LARGEST_CELL = 2**31 - 1  # characters; the largest C long on all platforms
# Empty cells according to pandas, which is used for the published tables.
_EMPTY = frozenset(
    (
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A"),
        *("NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    )
)


def write_atomic(path: Path, text: str) -> None:
    """Write a text file atomically."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, "utf-8")
    os.replace(part, path)


def drop_half_line(path: Path) -> None:
    """Cut off an unfinished last line, which a killed process leaves. A missing file stays missing."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)


def read_rows(path: Path, what: str = "question") -> list[Row]:
    """The objects of a JSON-lines file, or of a JSON file that is a list. Blank lines are skipped.

    Raises ValueError, one line, for a missing file and for the first bad row.
    """
    if path.suffix == ".json" and read_bytes(path, f"{what} file").lstrip().removeprefix(BOM).startswith(b"["):
        rows = read_json(path)
    else:
        rows = [_row(path, number, line) for number, line in json_lines(path, f"{what} file")]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{path} entry {number} is not a JSON object; give a file of JSON lines")
    return rows


def _row(path: Path, number: int, line: bytes) -> Any:
    try:
        return parse_json(line)
    except ValueError as error:
        raise ValueError(f"{path} line {number} is not JSON ({one_line(error)}); correct or remove the line") from error


def write_rows(rows: Iterable[Any], path: Path) -> None:
    """Write JSON lines, or one JSON list where the name ends in .json, atomically."""
    if path.suffix == ".json":
        write_json(list(rows), path)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_json(content: Any, path: Path) -> None:
    """Write one JSON document atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def field_of(row: Row, name: str, where: str) -> Any:
    """row[name]. Raises ValueError, one line, when there is none."""
    if name not in row:
        raise ValueError(f"{where} has an entry without {name!r}; download the official file again")
    return row[name]


def read_table(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a tab-separated file with a header, cells of any size. Raises ValueError when it is missing.

    Bytes that are not UTF-8 become lone surrogates, which `refuse_surrogates` finds in a single row.
    """
    if not path.is_file():
        raise ValueError(f"table {path} does not exist; give the path of an existing one")
    csv.field_size_limit(_LARGEST_CELL)  # pictures in base64 are larger than the module's limit
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield from csv.DictReader(file, delimiter="\t")
    except csv.Error as error:
        raise ValueError(f"{path} is not a table ({one_line(error)}); download it again") from error


def is_empty(cell: str | None) -> bool:
    """Whether a cell of a table is empty."""
    return cell is None or cell in _EMPTY or cell.lower() in ("nan", "none")


def absent(rows: Iterable[Row], images: Path | None) -> list[str]:
    """The images that rows name and that do not exist, each once."""
    if images is None:
        return []
    named = (row.get("image") or [] for row in rows)
    names = dict.fromkeys(name for one in named for name in ([one] if isinstance(one, str) else one))
    return [name for name in names if not (images / name).is_file()]
