"""What the fields of a method take, and what its docstring says they mean."""

from __future__ import annotations

import inspect
import itertools
import re
from contextlib import suppress
from typing import Any, Literal, get_args, get_origin

from flowcut.pruner.budget import Budget

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


def field_from_text(name: str, key: str, text: str, kind: Any) -> object:
    """A field's value from text.

    Args:
        name, key: the method and the field, for messages.
        kind: the field's type.

    Raises:
        ValueError: the text is no such value.
    """
    wanted = allowed(kind)
    kind, optional = without_none(kind)
    if optional and text == "None":
        return None
    if get_origin(kind) is tuple:
        try:
            return tuple(int(part) for part in text.split("/"))
        except ValueError:
            raise ValueError(f"{name}:{key}={text} are not whole numbers; write them as in {key}=2/8/16") from None
    if kind is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
    elif kind in (int, float, Budget):
        for number in get_args(kind) or (kind,):
            with suppress(ValueError):  # text that is no whole number may be a share
                return number(text)
        raise ValueError(f"{name}:{key}={text} is not a number; {key} takes {wanted}")
    elif get_origin(kind) is Literal:
        for choice in get_args(kind):
            if text == str(choice):
                return choice
        raise ValueError(f"{name}:{key}={text} is not allowed; {key} takes {wanted}")
    else:
        return text
    raise ValueError(f"{name}:{key}={text} is neither true nor false; {key} takes {wanted}")


def check_json(name: str, key: str, value: object, kind: Any) -> None:
    """Raise ValueError when a value read from JSON is not of the kind that a field takes."""
    kind, optional = without_none(kind)
    if optional and value is None:
        return
    number = isinstance(value, int) and not isinstance(value, bool)
    fits, wanted = True, ""
    if kind is bool:
        fits, wanted = isinstance(value, bool), "true or false"
    elif kind is int:
        fits, wanted = number, "a whole number"
    elif kind is float:
        fits, wanted = number or isinstance(value, float), "a number"
    elif kind == Budget:
        fits, wanted = number or (isinstance(value, float) and 0 < value < 1), SHARE_TOO
    elif kind is str:
        fits, wanted = isinstance(value, str), "text"
    elif get_origin(kind) is tuple:
        whole = isinstance(value, list | tuple) and all(type(part) is int for part in value)
        fits, wanted = whole, "a list of whole numbers"
    elif get_origin(kind) is Literal:
        fits, wanted = value in get_args(kind), " or ".join(repr(choice) for choice in get_args(kind))
    if not fits:
        raise ValueError(f"{name}: {key}={value!r} does not fit; give {wanted}{' (or null)' if optional else ''}")
