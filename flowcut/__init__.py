"""FlowCut: visual token pruning by information flow, for models of transformers and of the llava package.

with attach(model, FlowCut(budget=64)) as handle:
    model.generate(...)
handle.trace.kept
"""

from flowcut.attach import Handle, attach, detach, flowcut
from flowcut.baselines.cdpruner import CDPruner
from flowcut.baselines.dart import DART
from flowcut.baselines.divprune import DivPrune
from flowcut.baselines.fastervlm import FasterVLM
from flowcut.baselines.fastv import FastV
from flowcut.baselines.hiprune import HiPrune
from flowcut.baselines.holov import HoloV
from flowcut.baselines.pdrop import PyramidDrop
from flowcut.baselines.pooling import Pooling
from flowcut.baselines.prumerge import PruMerge
from flowcut.baselines.random import Random
from flowcut.baselines.rcom import RCom
from flowcut.baselines.scope import SCOPE
from flowcut.baselines.sparsevlm import SparseVLM
from flowcut.baselines.tome import ToMe
from flowcut.baselines.uniform import Uniform
from flowcut.baselines.visionzip import VisionZip
from flowcut.baselines.vispruner import VisPruner
from flowcut.baselines.vtw import VTW
from flowcut.compat import check_versions
from flowcut.method import FlowCut
from flowcut.paper_rows import paper_row
from flowcut.pruner import Cut, LanguageView, Pruner, View
from flowcut.registry import parse_pruner
from flowcut.text import TextTower, asked
from flowcut.trace import Trace

check_versions()

__all__ = [
    "DART",
    "SCOPE",
    "VTW",
    "CDPruner",
    "Cut",
    "DivPrune",
    "FastV",
    "FasterVLM",
    "FlowCut",
    "Handle",
    "HiPrune",
    "HoloV",
    "LanguageView",
    "Pooling",
    "PruMerge",
    "Pruner",
    "PyramidDrop",
    "RCom",
    "Random",
    "SparseVLM",
    "TextTower",
    "ToMe",
    "Trace",
    "Uniform",
    "View",
    "VisPruner",
    "VisionZip",
    "asked",
    "attach",
    "detach",
    "flowcut",
    "paper_row",
    "parse_pruner",
]
