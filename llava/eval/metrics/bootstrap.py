"""Confidence intervals of means over questions in groups (several about one scene), which are not independent."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

_KEPT = 2**24  # maximal number of draws times groups that are computed at once and cached


class Interval(NamedTuple):
    low: float
    high: float


def bootstrap_interval(
    values: Sequence[float], groups: Sequence[Hashable], level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """The percentile interval of the mean of `values`, by drawing whole groups with replacement.

    values, groups: one per question. For the difference of two methods on the same questions, pass the differences.

    Raises ValueError for empty or unequal lists.
    """
    if not len(values) or len(values) != len(groups):
        raise ValueError(f"{len(values)} values with {len(groups)} groups; give one group per value, and at least one")
    number = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    index = np.array([number[group] for group in groups])
    totals = np.bincount(index, weights=np.asarray(values, dtype=float))
    sizes = np.bincount(index)
    means = np.concatenate([(times @ totals) / (times @ sizes) for times in _draws(len(number), draws, seed)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _draws(groups: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """[some draws, groups] at a time: how often each group is drawn; the same numbers for any size of the pieces."""
    if groups * draws <= _KEPT:
        yield _drawn(groups, draws, seed)
        return
    rng, piece = np.random.default_rng(seed), max(1, _KEPT // groups)
    for begin in range(0, draws, piece):
        yield rng.multinomial(groups, np.full(groups, 1 / groups), size=min(piece, draws - begin))


@lru_cache(maxsize=4)
def _drawn(groups: int, draws: int, seed: int) -> np.ndarray:
    """[draws, groups]: how often each group is drawn. Cached, because tables need hundreds of intervals over the same
    groups.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(groups, np.full(groups, 1 / groups), size=draws)


def mean_with_interval(values: Sequence[float], groups: Sequence[int]) -> tuple[float, float, float] | None:
    """Mean and the ends of its 95 % interval (see `bootstrap_interval`); None without values."""
    if not values:
        return None
    return sum(values) / len(values), *bootstrap_interval(values, groups)
