"""FlowCut: visual token pruning by information flow, for models of transformers and of the llava package.

with attach(model, FlowCut(budget=64)) as handle:
    model.generate(...)
handle.trace.kept
"""

from flowcut.attach import Handle, attach, detach, flowcut, handle_of
from flowcut.compat import check_versions
from flowcut.hooks.call_context import asked
from flowcut.methods import *  # noqa: F403 every registered method's class
from flowcut.pruner import Cut, LanguageView, OneCut, Pruner, Scorer, View
from flowcut.registry import METHODS, paper_row, parse_pruner
from flowcut.text_tower import TextTower
from flowcut.trace import Trace
from flowcut.version import __version__

check_versions()

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
    "__version__",
    "asked",
    "attach",
    "detach",
    "flowcut",
    "handle_of",
    "paper_row",
    "parse_pruner",
    *dict.fromkeys(method.cls.__name__ for method in METHODS.values()),
]
