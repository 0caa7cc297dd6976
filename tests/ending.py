"""How a program ends that is run in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def ending(main: Callable[[Sequence[str]], Any], arguments: Sequence[str]) -> int:
    """The exit status of a program's `main`, returned or raised."""
    try:
        return main(arguments) or 0
    except SystemExit as end:
        if not isinstance(end.code, int):  # a text would end a process with status 1
            raise TypeError(f"the program ends with the text {end.code!r}") from end
        return end.code
