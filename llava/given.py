"""What users and their files give: paths, JSON, base64, rows; and how an error about them is told, in one line.

Every program reads these here, so that the same input is accepted, or refused with the same words, everywhere.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from flowcut.cli.command_line import one_line as one_line

BOM = b"\xef\xbb\xbf"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
"""The name of a repository of the Hugging Face Hub; a relative path of two parts looks alike."""
_DATA_URL = re.compile(r"data:[^,]{0,200},")
_DEEP = "its brackets are nested too deeply"
Row = TypeVar("Row")
Read = TypeVar("Read")


def home_path(path: str | os.PathLike[str]) -> Path:
    """The path with `~` replaced. That of an unknown user stays as it is, a file that does not exist."""
    return Path(os.path.expanduser(path))


def decode_base64(text: str | bytes) -> bytes:
    """The bytes in base64, in any of its usual forms: with line breaks, as a data URL, without padding, url-safe.

    Raises ValueError, one line, for other characters and for an impossible length.
    """
    try:
        written = text.decode("ascii") if isinstance(text, bytes) else text
        written = "".join(_DATA_URL.sub("", written.lstrip(), count=1).split()).rstrip("=")
        written = written.translate({ord("-"): "+", ord("_"): "/"})
        return base64.b64decode(written + "=" * (-len(written) % 4), validate=True)
    except (ValueError, AttributeError, TypeError) as error:  # binascii.Error is a ValueError
        raise ValueError(f"not base64 ({one_line(error)})") from None


def parse_json(text: str | bytes, surrogates: bool = False) -> Any:
    """A JSON document, with or without a byte order mark.

    surrogates: let lone ones pass, because the rows of the document are looked at one by one.

    Raises ValueError, one line: also for other encodings than UTF-8, for brackets that are nested too deeply, and for
    lone surrogates.
    """
    try:
        written = text.removeprefix(BOM).decode("utf-8") if isinstance(text, bytes) else text.removeprefix("\ufeff")
        document = json.loads(written)
        if not surrogates and ("\\ud" in written or "\\uD" in written):
            refuse_surrogates(json.dumps(document, ensure_ascii=False))
    except RecursionError:
        raise ValueError(_DEEP) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.object[error.start]:#04x}); save it as UTF-8") from error
    return document


def refuse_surrogates(text: str) -> None:
    """Raise ValueError, one line, for text that cannot be tokenised or written: a wrong encoding, or half a pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("its text has half a surrogate pair, which is not a character; save it as UTF-8") from error


def read_json(path: str | Path) -> Any:
    """A whole JSON file. Raises ValueError, one line, when it is missing or damaged."""
    try:
        return parse_json(read_bytes(path))
    except ValueError as error:
        if "does not exist" in str(error):
            raise
        raise ValueError(f"{path} is not JSON ({one_line(error)}); correct it, or download it again") from error


def read_bytes(path: str | Path, what: str = "file") -> bytes:
    """The content of a regular file. Raises ValueError, one line, when there is none or it cannot be read."""
    file = home_path(path)
    try:
        if not file.is_file():
            raise ValueError(f"{what} {path} does not exist; give the path of an existing one")
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"{what} {path} cannot be read ({one_line(error)})") from error


def json_lines(path: str | Path, what: str = "file") -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line) of the lines of a file that are not blank, without a byte order mark."""
    for number, line in enumerate(read_bytes(path, what).removeprefix(BOM).split(b"\n"), start=1):
        if line.strip():
            yield number, line


def read_each(rows: Iterable[tuple[str, Row]], read: Callable[[Row], Read]) -> tuple[list[Read], list[tuple[str, str]]]:
    """What `read` makes of each row; and (where, reason) of those that it cannot use, whatever it raised.

    rows: (where, row). A row that cannot be used stops no other one.
    """
    good, bad = [], []
    for where, row in rows:
        try:
            good.append(read(row))
        except Exception as error:
            bad.append((where, one_line(error)))
    return good, bad
