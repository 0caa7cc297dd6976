"""FlowCut: visual token pruning by information flow, for models of transformers and of the llava package.

with attach(model, FlowCut(budget=64)) as handle:
    model.generate(...)
handle.trace.kept
"""

from flowcut.attach import Handle, attach, detach, flowcut
from flowcut.baselines.fastervlm import FasterVLM
from flowcut.baselines.fastv import FastV
from flowcut.baselines.random import Random
from flowcut.baselines.visionzip import VisionZip
from flowcut.method import FlowCut
from flowcut.pruner import Cut, LanguageView, Pruner, Trace, View
from flowcut.registry import parse_pruner

__all__ = [
    "Cut",
    "FastV",
    "FasterVLM",
    "FlowCut",
    "Handle",
    "LanguageView",
    "Pruner",
    "Random",
    "Trace",
    "View",
    "VisionZip",
    "attach",
    "detach",
    "flowcut",
    "parse_pruner",
]
