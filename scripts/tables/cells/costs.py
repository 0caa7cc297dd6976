"""What answers cost: means of tokens, GFLOPs and times, as they stand in a cell's JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flowcut import Pruner
from llava.eval.measures import Sizes, flops_of, mean_gflops, mean_tokens, spread


def mean_costs(answers: Sequence[Mapping[str, Any]], sizes: Sizes | None, pruner: Pruner | None) -> dict[str, Any]:
    """Means of tokens and GFLOPs over answers, and the spread of their times in ms.

    answers: the metadata of each. sizes: of the model; None where there is no formula, and then no GFLOPs. Everything
    is None where nothing was answered.
    """
    if not answers:
        return {"tokens": None, "gflops": None, "ms": None}
    merges = pruner is not None and pruner.merges_before_mlp
    stages = {name: spread([one[f"{name}_ms"] for one in answers]) for name in ("encode", "prefill")}
    return {
        "tokens": mean_tokens(answers),
        "gflops": None if sizes is None else mean_gflops(flops_of(answers, sizes, merges)),
        "ms": {**spread([one["ms"] for one in answers]), **stages},
    }
