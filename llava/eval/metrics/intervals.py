"""95 % intervals of a benchmark's number: a mean, F1, or points of pairs of questions."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

from llava.eval.metrics.bootstrap import Interval, bootstrap_interval
from llava.eval.sample import Score

_BLOCKS = 100
_NORMAL = 1.959964  # 95 % of the normal distribution are within this number of standard deviations
_ROUNDING = 1e-3


def interval_of(
    scores: Sequence[Score],
    groups: Sequence[Hashable],
    value: float | None,
    aggregate: Callable[[Sequence[Score]], float | None],
) -> Interval | None:
    """The interval of `value`, which is `aggregate(scores)`, over whole groups.

    A percentage of the questions is bootstrapped; for any other number the jackknife is used, because a group that is
    drawn twice would count as one question where questions are counted together.

    groups: one per score, such as its picture. None where there are fewer than two groups, or a part has no number.
    """
    known = [(one.value, group) for one, group in zip(scores, groups, strict=True) if one.value is not None]
    if value is None or len({group for _, group in known}) < 2:
        return None
    values = [worth for worth, _ in known]
    if abs(100 * sum(values) / len(values) - value) < _ROUNDING:
        low, high = bootstrap_interval(values, [group for _, group in known])
        return Interval(100 * low, 100 * high)
    return jackknife_interval(scores, groups, value, aggregate)


def jackknife_interval(
    scores: Sequence[Score],
    groups: Sequence[Hashable],
    value: float,
    aggregate: Callable[[Sequence[Score]], float | None],
    blocks: int = _BLOCKS,
) -> Interval | None:
    """Normal interval from the numbers without one block of groups at a time; None where one of them is None.

    Groups are assigned to the blocks in turn, so that blocks are similar.
    """
    order = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    count = min(blocks, len(order))
    left_out = [
        aggregate([one for one, group in zip(scores, groups, strict=True) if order[group] % count != block])
        for block in range(count)
    ]
    numbers = [number for number in left_out if number is not None]
    if count < 2 or len(numbers) < count:
        return None
    centre = sum(numbers) / count
    spread = math.sqrt((count - 1) / count * sum((number - centre) ** 2 for number in numbers))
    return Interval(value - _NORMAL * spread, value + _NORMAL * spread)
