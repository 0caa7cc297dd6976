"""How many visual tokens remain after each cut inside the language model, for a budget on average over its layers.

Where a method cuts inside the language model, the field calls T the mean number of visual tokens over the decoder's
layers, but counts it in two ways: by what goes into each layer, which is what the layers compute on, or by what comes
out of them, which charges the layer that cuts with what it leaves (SparseVLM). The two differ by up to a third, so a
`Schedule` tells both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

Counted = Literal["inputs", "outputs"]
_HALVINGS = 60


@dataclass(frozen=True)
class Schedule:
    """The path of one image's visual tokens through a decoder.

    Attributes:
        tokens: how many enter the decoder.
        layers: how many layers it has.
        after: layers after which a cut is made, ascending.
        kept: tokens that each cut picks.
        left: tokens after each cut: `kept`, and what merging adds.
    """

    tokens: int
    layers: int
    after: tuple[int, ...]
    kept: tuple[int, ...]
    left: tuple[int, ...]

    @property
    def leaving(self) -> list[int]:
        """Visual tokens that come out of each layer."""
        counts, now = [], self.tokens
        for layer in range(self.layers):
            if layer in self.after:
                now = self.left[self.after.index(layer)]
            counts.append(now)
        return counts

    @property
    def entering(self) -> list[int]:
        """Visual tokens that go into each layer; what `flowcut.cost` takes."""
        return [self.tokens, *self.leaving[:-1]]

    @property
    def inputs(self) -> float:
        """Mean over layers of the tokens that go in."""
        return sum(self.entering) / self.layers

    @property
    def outputs(self) -> float:
        """Mean over layers of the tokens that come out."""
        return sum(self.leaving) / self.layers

    def mean(self, counted: Counted) -> float:
        return self.inputs if counted == "inputs" else self.outputs


def build(
    tokens: int,
    layers: int,
    after: Sequence[int],
    kept: Sequence[int],
    merged: Callable[[int], int] | None = None,
    least: int = 0,
) -> Schedule:
    """The schedule that keeps `kept` tokens at its cuts, or as many as there are.

    Args:
        merged: how many tokens are made of a number of dropped ones; none if left out.
        least: how many tokens every cut drops at least, the last one excepted.
    """
    now, picked, left = tokens, [], []
    for wanted in kept:
        keep = min(wanted, max(now - least, min(now, 1)))
        dropped = now - keep
        now = keep + (merged(dropped) if merged is not None and dropped else 0)
        picked.append(keep)
        left.append(now)
    return Schedule(tokens, layers, tuple(after), tuple(picked), tuple(left))


@lru_cache(maxsize=1024)
def shrinking(
    tokens: int,
    layers: int,
    after: tuple[int, ...],
    budget: int,
    counted: Counted = "inputs",
    merged: Callable[[int], int] | None = None,
    least: int = 0,
) -> Schedule:
    """Keep int(tokens * r), int(tokens * r^2), ... at the cuts, with the one r whose mean comes nearest to the budget.

    Raises:
        ValueError: even one token a cut is too many on average.
    """

    def made(ratio: float) -> Schedule:
        kept = [max(int(tokens * ratio**step), 1) for step in range(1, len(after) + 1)]
        return build(tokens, layers, after, kept, merged, least)

    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if made(middle).mean(counted) <= budget else (low, middle)
    found = min(made(low), made(high), key=lambda schedule: abs(schedule.mean(counted) - budget))
    if found.mean(counted) > budget + 1:
        least_mean = least_shrinking(tokens, layers, after, counted, merged, least)
        where = "/".join(str(layer) for layer in after)
        raise ValueError(
            f"budget={budget} cannot be met on average over {layers} layers with {tokens} tokens up to the first of "
            f"the cuts after layers {where}; use at least {least_mean}, or cut earlier"
        )
    return found


def least_shrinking(
    tokens: int,
    layers: int,
    after: tuple[int, ...],
    counted: Counted = "inputs",
    merged: Callable[[int], int] | None = None,
    least: int = 0,
) -> int:
    """The smallest budget of `shrinking`: the mean, rounded up, where every cut keeps one token."""
    return math.ceil(build(tokens, layers, after, [1] * len(after), merged, least).mean(counted))


def single(tokens: int, layers: int, layer: int, budget: int) -> int:
    """How many tokens to keep before `layer` so that the layers read `budget` on average.

    Raises:
        ValueError: less than one.
    """
    kept = round((layers * budget - layer * tokens) / (layers - layer))
    if kept < 1:
        least = least_single(tokens, layers, layer)
        raise ValueError(
            f"budget={budget} cannot be met on average over {layers} layers when the first {layer} "
            f"read all {tokens} tokens; use at least {least}, or keep="
        )
    return kept


def least_single(tokens: int, layers: int, layer: int) -> int:
    """The smallest budget of `single`: the mean, rounded up, where one token is left."""
    return -(-(layer * tokens + layers - layer) // layers)


def check_single(layer: int, keep: int | None) -> None:
    """Raise ValueError unless a single cut is made before a layer >= 1 and leaves a token."""
    if layer < 1:
        raise ValueError(f"layer={layer} is not a layer's number >= 1; the paper's is 2")
    if keep is not None and keep < 1:
        raise ValueError(f"keep={keep} is not a number of tokens >= 1")


def check_positions(value: str) -> None:
    """Raise ValueError unless a field says what becomes of the positions of kept tokens."""
    if value not in ("original", "renumbered"):
        raise ValueError(f"positions={value!r} is not allowed; choose original or renumbered")


def check_stages(name: str, value: Sequence[int], lowest: int) -> None:
    """Raise ValueError unless a field holds layer numbers >= lowest that ascend."""
    given = "/".join(str(layer) for layer in value) if isinstance(value, tuple) else repr(value)
    ascending = isinstance(value, tuple) and all(one < other for one, other in pairwise(value))
    if not ascending or not value or value[0] < lowest:
        raise ValueError(f"{name}={given} are not ascending layer numbers >= {lowest}; write, say, {name}=2/8/16")


def check_kept(name: str, value: Sequence[int] | None, stages: int) -> None:
    """Raise ValueError unless a field is None or holds a number of tokens >= 1 for each stage."""
    if value is not None and (len(value) != stages or min(value) < 1):
        given = "/".join(str(count) for count in value)
        raise ValueError(f"{name}={given} is not one number of tokens >= 1 for each of the {stages} cuts")
