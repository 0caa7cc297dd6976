"""Streams text to a terminal."""

from __future__ import annotations

from typing import TextIO


class Typist:
    """Writes the new part of a growing text."""

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
