"""Progress bars of the programs: a moving bar in a terminal, in a log a line every half minute."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from tqdm import tqdm

SECONDS = 30.0
"""Between two lines of a log."""
LINE = "{desc}: {n_fmt} of {total_fmt}, {elapsed} passed, {remaining} left"


class Lines:
    """A stream for tqdm whose writes become whole lines, without the characters that move a terminal's cursor."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        line = text.replace("\x1b[A", "").strip()
        if line:
            self.stream.write(f"{line}\n")

    def flush(self) -> None:
        self.stream.flush()


def progress_bar(*given: Any, **settings: Any) -> tqdm:
    """A bar of tqdm on stderr, with tqdm's arguments; where stderr is no terminal, few whole lines."""
    if not sys.stderr.isatty():
        settings |= {"file": Lines(sys.stderr), "mininterval": SECONDS, "miniters": 1, "position": 0}
        if settings.get("desc"):
            settings["bar_format"] = LINE
    return tqdm(*given, **settings)
