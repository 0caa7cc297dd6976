"""The contract between pruning methods and models: views, cuts, and the classes that methods derive from."""

from flowcut.pruner.base import Pruner
from flowcut.pruner.budget import Budget, whole_budget
from flowcut.pruner.cut import CLS, Cut, valid_mask
from flowcut.pruner.decoder_view import CachedView, LanguageView, Layout
from flowcut.pruner.one_cut import OneCut, Scorer
from flowcut.pruner.question import Question, TextEncoder, needed
from flowcut.pruner.shape import EncoderShape, ModelShape
from flowcut.pruner.view import Rows, View

__all__ = [
    "CLS",
    "Budget",
    "CachedView",
    "Cut",
    "EncoderShape",
    "LanguageView",
    "Layout",
    "ModelShape",
    "OneCut",
    "Pruner",
    "Question",
    "Rows",
    "Scorer",
    "TextEncoder",
    "View",
    "needed",
    "valid_mask",
    "whole_budget",
]
