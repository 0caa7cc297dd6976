"""FlowCut (Tong et al., "FlowCut: Rethinking Redundancy via Information Flow for Efficient Vision-Language Models").

After each encoder layer every patch gets an importance score from three criteria, which is averaged with its past;
after every second layer the least important patches go. How many go follows from how concentrated the CLS attention is.
docs/method.md says where the paper and its released code differ, and which field below switches each difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from flowcut import scores
from flowcut.pruner import Cut, Pruner, View


@dataclass(frozen=True)
class FlowCut(Pruner):
    """FlowCut with the behaviour of its released code for one image alone, at the encoder stage.

    Attributes:
        budget: visual tokens that reach the language model, per image.
        interval: select after every `interval`-th layer, counted back from `last_layer`. One longer than the encoder
            selects a single time.
        last_layer: layer after whose output the budget is met, counted from the encoder's end (-3: the one before
            the layer LLaVA reads its features from).
        history: weight of the past in the cumulative score; 0 scores each layer by itself.
        attention, semantic, value: which criteria take part.
        adaptive: take the number to drop from the attention's entropy (equation 3); otherwise drop the same share
            each time.
        batch_coupling: "none" lets every image decide for itself; "max" drops the largest number of any image in the
            batch from all of them, as the released code does.
        semantic_scale: divide value products by nothing ("none"), by sqrt of the head's width ("head").
        heads: "split" computes semantic relevance per head and averages, and averages values over heads before their
            norm; "joined" takes the whole value vector for both (with semantic_scale="head": over sqrt of its width).
        softmax_over: "all" tokens, CLS included, or "patches" only.
        entropy_over: "patches", renormalised to sum 1, or "all" tokens as they are.
        steps_left: the L of equation 3: "layers" to the last selection, or "selections" still to come.

    Raises:
        ValueError: a field has a value that is not allowed.
    """

    interval: int = 2
    last_layer: int = -3
    history: float = 0.5
    attention: bool = True
    semantic: bool = True
    value: bool = True
    adaptive: bool = True
    batch_coupling: Literal["none", "max"] = "none"
    semantic_scale: Literal["none", "head"] = "none"
    heads: Literal["split", "joined"] = "split"
    softmax_over: Literal["all", "patches"] = "all"
    entropy_over: Literal["patches", "all"] = "patches"
    steps_left: Literal["layers", "selections"] = "layers"

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of(self, "batch_coupling", "none", "max")
        _one_of(self, "semantic_scale", "none", "head")
        _one_of(self, "heads", "split", "joined")
        _one_of(self, "softmax_over", "all", "patches")
        _one_of(self, "entropy_over", "patches", "all")
        _one_of(self, "steps_left", "layers", "selections")
        if self.interval < 1:
            raise ValueError(f"interval={self.interval} is not a number of layers >= 1; the paper's is 2")
        if self.last_layer > -1:
            raise ValueError(f"last_layer={self.last_layer} counts from the encoder's end, so -1 or less; default -3")
        if not 0 <= self.history < 1:
            raise ValueError(f"history={self.history} is not a weight in [0, 1); the paper's is 0.5")
        if not (self.attention or self.semantic or self.value):
            raise ValueError("attention, semantic and value are all off: leave at least one criterion on")

    @classmethod
    def paper(cls, budget: int, **fields: Any) -> FlowCut:
        """The paper's equations 1 to 6 to the letter; where they are silent, the released code's choice.

        Equation 4 divides value products by sqrt(D_v), equation 2 sums over all N tokens of the sequence and so takes
        log N of it, and the L of equation 3 is the number of prunings still to come.
        """
        literal = {"semantic_scale": "head", "entropy_over": "all", "steps_left": "selections"}
        return cls(budget=budget, **{**literal, **fields})

    def vision(self, view: View) -> Cut | None:
        target = self.budget - view.reserved
        left = view.layers + self.last_layer - view.layer
        if view.layers + self.last_layer < 0:
            raise ValueError(
                f"last_layer={self.last_layer} is not in this encoder, which has only {view.layers} layers"
            )
        if left < 0 or max(view.counts) <= target:
            return None
        importance, row = self.importance(view)
        cumulative = scores.running_mean(view.memory.get("cumulative"), importance, self.history)
        view.memory["cumulative"] = cumulative
        view.record("cumulative", cumulative)
        if left % self.interval:
            return None
        cut = Cut.best(cumulative, self.keep_counts(view, row, target, left), view.valid)
        view.memory["cumulative"] = cumulative.gather(1, cut.keep)
        return cut

    def importance(self, view: View) -> tuple[Tensor, Tensor]:
        """Equation 5 for this layer, [B, n], and the CLS attention row over all tokens averaged over heads, [B, S]."""
        if self.softmax_over == "patches":
            prefix, valid = view.prefix, view.valid
        else:
            prefix, valid = 0, view.key_valid
        query, keys = view.global_token(view.q), view.k[:, :, prefix:]
        row = scores.softmax_row(query, keys, view.scaling, valid).mean(dim=1)
        attention = row[:, view.prefix - prefix :]
        view.record("attention", attention)

        values = view.v if self.heads == "split" else view.v.transpose(1, 2).flatten(2)[:, None]
        scale = 1.0 if self.semantic_scale == "none" else values.shape[-1] ** -0.5
        importance = torch.zeros_like(attention)
        if self.attention:
            importance = importance + scores.normalise(attention)
        if self.semantic:
            semantic = scores.softmax_row(view.global_token(values), values[:, :, prefix:], scale, valid).mean(dim=1)
            semantic = semantic[:, view.prefix - prefix :]
            view.record("semantic", semantic)
            importance = importance + scores.normalise(semantic)
        if self.value:
            strength = scores.value_strength(view.visual(values))
            view.record("value", strength)
            importance = importance * strength if self.attention or self.semantic else strength
        view.record("score", importance)
        return importance, row

    def keep_counts(self, view: View, row: Tensor, target: int, left: int) -> list[int]:
        """How many patches each sample keeps after this layer."""
        if left == 0:
            return [min(count, target) for count in view.counts]
        if not self.adaptive:
            selections = left // self.interval + 1
            return [n if n <= target else round(n * (target / n) ** (1 / selections)) for n in view.counts]
        if self.entropy_over == "patches":
            weights, extra = scores.normalise(row[:, -view.positions.shape[1] :]), 0
        else:
            weights, extra = row, row.shape[1] - view.positions.shape[1]
        entropy = scores.entropy(weights)
        view.record("entropy", entropy)
        steps = left if self.steps_left == "layers" else left / self.interval
        drops = [
            scores.prune_number(n, target, steps, h / math.log(n + extra)) if n > target else 0.0
            for n, h in zip(view.counts, entropy.tolist(), strict=True)
        ]
        view.record("prune_number", torch.tensor(drops))
        together = view.groups if self.batch_coupling == "none" else (0,) * len(drops)
        largest: dict[int, float] = {}
        for group, drop in zip(together, drops, strict=True):
            largest[group] = max(drop, largest.get(group, drop))
        return [max(n - round(largest[group]), min(n, target)) for n, group in zip(view.counts, together, strict=True)]


def _one_of(pruner: Pruner, name: str, *allowed: str) -> None:
    given = getattr(pruner, name)
    if given not in allowed:
        raise ValueError(f"{name}={given!r} is not allowed; choose {' or '.join(allowed)}")
