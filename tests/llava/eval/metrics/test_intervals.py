"""Intervals of means and of other numbers."""

import statistics

import pytest

from llava.eval.metrics.bootstrap import bootstrap_interval
from llava.eval.metrics.intervals import interval_of, jackknife_interval
from llava.eval.sample import Score


def test_intervals_of_means_and_of_other_numbers():
    values = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    scores = [Score(number, value) for number, value in enumerate(values)]
    groups = [number // 2 for number in range(8)]

    def mean(part):
        return 100 * statistics.fmean(one.value for one in part)

    own = interval_of(scores, groups, 62.5, mean)
    assert own == pytest.approx([100 * end for end in bootstrap_interval(values, groups)])
    # Of a mean the jackknife's standard error is the textbook's.
    low, high = jackknife_interval(scores, range(8), 62.5, mean)
    error = 100 * statistics.stdev(values) / 8**0.5
    assert (62.5 - low, high - 62.5) == pytest.approx((1.959964 * error,) * 2)
    root_of_mean = interval_of(scores, groups, mean(scores) ** 0.5, lambda part: mean(part) ** 0.5)
    assert root_of_mean.low < mean(scores) ** 0.5 < root_of_mean.high
    assert interval_of(scores, [0] * 8, 62.5, mean) is None
    assert interval_of(scores, groups, 1.0, lambda part: None) is None
