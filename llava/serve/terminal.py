"""Text on a terminal while it grows."""

from __future__ import annotations

from typing import TextIO


class Typist:
    """Writes what is new of a text that only ever grows."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.shown = ""

    def show(self, text: str) -> None:
        self.out.write(text[len(self.shown) :])
        self.out.flush()
        self.shown = text

    def end(self) -> None:
        self.out.write("\n")
        self.out.flush()
