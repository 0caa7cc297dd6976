"""The settings behind the rows of FlowCut's tables (arXiv 2505.19536), as far as they are known."""

from __future__ import annotations

from flowcut.pruner import Pruner
from flowcut.registry import METHODS, parse_pruner

# Where something is known beyond the budget. FLOPs printed in table 5 tell how FastV cut (docs/cost.md); table 9 names
# VTW's layer. At 160 of 2880 tokens the published layers of SparseVLM and PyramidDrop read more on average, so others
# must have been used: the ones here are the nearest that meet it, a guess.
KNOWN: dict[tuple[str, float, int], str] = {
    ("fastv", 64, 5): "fastv:budget=64,layer=1,keep=64",
    ("fastv", 160, 5): "fastv:budget=160,layer=2,keep=160",
    ("vtw", 90, 9): "vtw:budget=90,layer=5",
    **{("sparsevlm", 160, table): "sparsevlm:budget=160,layers=1/6/15" for table in (2, 5)},
    **{("pdrop", 160, table): "pdrop:budget=160,layers=1/8/16" for table in (2, 5)},
}


def paper_row(method: str, budget: int | float, table: int = 1) -> Pruner:
    """The pruner that stands for a method's row in a table of the paper.

    Everything that is not known is the method's own published default for that budget: rows of other methods are mostly
    quoted from earlier papers, which do not say more.

    Args:
        method: a name of `flowcut.registry.METHODS`.
        budget: visual tokens as the row has them; per frame in table 4, a share of each picture's in table 3.
        table: 1 to 11.

    Raises:
        ValueError: an unknown method, or a budget that cannot be.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    pruner = parse_pruner(KNOWN.get((method, budget, table), f"{method}:budget={budget}"))
    assert pruner is not None
    return pruner
