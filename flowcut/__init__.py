"""FlowCut: visual token pruning by information flow, for models of transformers and of the llava package.

with attach(model, FlowCut(budget=64)) as handle:
    model.generate(...)
handle.trace.kept
"""

from flowcut.attach import Handle, attach, detach, flowcut
from flowcut.baselines.fastervlm import FasterVLM
from flowcut.baselines.random import Random
from flowcut.method import FlowCut
from flowcut.pruner import Cut, Pruner, Trace, View
from flowcut.registry import parse_pruner

__all__ = [
    "Cut",
    "FasterVLM",
    "FlowCut",
    "Handle",
    "Pruner",
    "Random",
    "Trace",
    "View",
    "attach",
    "detach",
    "flowcut",
    "parse_pruner",
]
