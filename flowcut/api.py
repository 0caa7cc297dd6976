"""What `import flowcut` offers. The package takes it from here on first use."""

from __future__ import annotations

from flowcut.attach import Handle, attach, detach, flowcut, handle_of
from flowcut.hooks.call_context import asked
from flowcut.methods import *  # noqa: F403 every registered method's class
from flowcut.pruner import Cut, LanguageView, OneCut, Pruner, Scorer, View
from flowcut.registry import METHODS, paper_row, parse_pruner
from flowcut.text_tower import TextTower
from flowcut.trace import Trace

__all__ = [
    "Cut",
    "Handle",
    "LanguageView",
    "OneCut",
    "Pruner",
    "Scorer",
    "TextTower",
    "Trace",
    "View",
    "asked",
    "attach",
    "detach",
    "flowcut",
    "handle_of",
    "paper_row",
    "parse_pruner",
    *dict.fromkeys(method.cls.__name__ for method in METHODS.values()),
]
