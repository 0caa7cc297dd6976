"""The registered methods with their settings and papers, as a table that is read without importing torch.

The table, methods.json beside this file, is written from the classes by `python -m scripts.methods`.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_name("methods.json")


class Setting(NamedTuple):
    """A field of a method: its default as text, which values it takes, and what it is for."""

    name: str
    default: str | None
    allowed: str
    meaning: str


class Registered(NamedTuple):
    """A method's class by name, what to cite, and its fields. Presets have the class of the method they are of."""

    cls: str
    paper: str
    settings: list[Setting]


@cache
def registered() -> dict[str, Registered]:
    """Every method and preset by its name, in the order of `flowcut.registry.METHODS`."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    return {
        name: Registered(method["class"], method["paper"], [Setting(**setting) for setting in method["settings"]])
        for name, method in table.items()
    }
