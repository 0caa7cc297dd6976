"""What the fields of a method take, and what its docstring says they mean."""

from __future__ import annotations

import inspect
import itertools
import re
from typing import Any, Literal, get_args, get_origin

from flowcut.pruner import Budget

SHARE_TOO = "a whole number, or a share between 0 and 1"
"""What a `Budget` takes."""


def without_none(kind: Any) -> tuple[Any, bool]:
    """`int | None` -> (int, True); `int` -> (int, False)."""
    if type(None) not in get_args(kind):
        return kind, False
    [kind] = [option for option in get_args(kind) if option is not type(None)]
    return kind, True


def allowed(kind: Any) -> str:
    """In words, which values a field of this type takes."""
    kind, optional = without_none(kind)
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Budget: SHARE_TOO}
    if get_origin(kind) is Literal:
        said = " or ".join(map(str, get_args(kind)))
    elif get_origin(kind) is tuple:
        said = "whole numbers, as in 2/8/16"
    else:
        said = words.get(kind, getattr(kind, "__name__", str(kind)))
    return f"{said}, or None" if optional else said


def meanings(cls: type) -> dict[str, str]:
    """What the "Attributes" sections of a class's docstrings say of each field."""
    found: dict[str, str] = {}
    for ancestor in reversed(cls.__mro__):
        lines = inspect.cleandoc(ancestor.__dict__.get("__doc__") or "").splitlines()
        section = lines[lines.index("Attributes:") + 1 :] if "Attributes:" in lines else []
        names: list[str] = []
        for line in itertools.takewhile(lambda line: line.startswith(" ") or not line, section):
            entry = re.fullmatch(r" {4}(\w+(?:, \w+)*): (.*)", line)
            if entry:
                names = entry[1].split(", ")
                found |= dict.fromkeys(names, entry[2])
            elif line.strip():
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found
