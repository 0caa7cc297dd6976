"""Data sets of the Hugging Face Hub in parquet: conversion of their rows to JSON lines, and of their pictures to
files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llava.eval.benchmarks.contract import Need
from llava.eval.files import write_rows

Row = dict[str, Any]


def hub_need(rows_file: str, pattern: str, data_set: str, gigabytes: float) -> Need:
    """Rows in JSON lines, or parquet files that `unpack_parquet` makes them of."""
    source = f"https://huggingface.co/datasets/{data_set} (parquet; unpacked with pyarrow, extra `eval`)"
    return Need((rows_file, pattern), "questions, pictures and answers", source, gigabytes=gigabytes)


def unpack_parquet(folder: Path, pattern: str, rows_file: str, take: Callable[[int, Row], tuple[Row, Any]]) -> None:
    """Write `rows_file` and `images/` from the parquet files below a folder, unless `rows_file` exists.

    take: (number of the row, the row) -> (the output row, its picture in the Hub's format: bytes and path).
    Raises ValueError where pyarrow is not installed or a row has no picture.
    """
    if (folder / rows_file).is_file():
        return
    files = sorted(folder.glob(pattern))
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ValueError(f"{files[0]} needs pyarrow to be read; pip install 'llava-flowcut[eval]'") from error
    rows: list[Row] = []
    for file in files:
        for batch in ParquetFile(file).iter_batches(batch_size=64):  # pictures of a whole file may not fit into memory
            for row in batch.to_pylist():
                kept, picture = take(len(rows), row)
                rows.append({**kept, "image": _save(folder / "images", str(kept["question_id"]), picture, file)})
    write_rows(rows, folder / rows_file)


def _save(images: Path, name: str, picture: Any, file: Path) -> str:
    if not picture or not picture.get("bytes"):
        raise ValueError(f"{file} has no picture for {name}; download the data set with its images inside")
    if Path(name).name != name or "\0" in name:  # the data set must not choose where files are written
        raise ValueError(f"{file} has the id {name!r}, which is not a file name; download the official data set again")
    images.mkdir(exist_ok=True)
    ending = Path(picture.get("path") or "").suffix or ".png"
    (images / f"{name}{ending}").write_bytes(picture["bytes"])
    return f"{name}{ending}"
