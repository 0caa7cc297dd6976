"""What the parts that change a model have in common: everything done is undone in reverse."""

from __future__ import annotations

from collections.abc import Callable


class Stage:
    """Hooks on one part of a model. Derive, and have `install` note in `undo` how to take each one off."""

    def __init__(self) -> None:
        self.undo: list[Callable[[], None]] = []

    def install(self) -> None:
        raise NotImplementedError

    def remove(self) -> None:
        while self.undo:
            self.undo.pop()()
