"""Token pruning methods behind one contract: one paper, one file, one dataclass.

One line here registers a method: it then has its text form, stands in menus, tables and pages, and has to meet the
laws. The order is the order in which methods are listed.
"""

# ruff: noqa: I001
from flowcut.methods.flowcut import FlowCut as FlowCut
from flowcut.methods.flowcut_plus import FlowCutPlus as FlowCutPlus
from flowcut.methods.fastv import FastV as FastV
from flowcut.methods.sparsevlm import SparseVLM as SparseVLM
from flowcut.methods.pdrop import PyramidDrop as PyramidDrop
from flowcut.methods.vtw import VTW as VTW
from flowcut.methods.st3 import ST3 as ST3
from flowcut.methods.dart import DART as DART
from flowcut.methods.visionzip import VisionZip as VisionZip
from flowcut.methods.fastervlm import FasterVLM as FasterVLM
from flowcut.methods.vispruner import VisPruner as VisPruner
from flowcut.methods.hiprune import HiPrune as HiPrune
from flowcut.methods.holov import HoloV as HoloV
from flowcut.methods.prumerge import PruMerge as PruMerge
from flowcut.methods.tome import ToMe as ToMe
from flowcut.methods.rcom import RCom as RCom
from flowcut.methods.divprune import DivPrune as DivPrune
from flowcut.methods.scope import SCOPE as SCOPE
from flowcut.methods.cdpruner import CDPruner as CDPruner
from flowcut.methods.random import Random as Random
from flowcut.methods.uniform import Uniform as Uniform
from flowcut.methods.pooling import Pooling as Pooling

__all__ = [name for name, value in dict(vars()).items() if isinstance(value, type)]  # not the modules
