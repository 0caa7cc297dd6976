"""Bootstrap intervals against what theory says."""

import numpy as np
import pytest

from llava.eval.metrics.bootstrap import bootstrap_interval


def test_independent_questions_give_the_normal_interval():
    rng = np.random.default_rng(0)
    values = (rng.random(800) < 0.7).astype(float)
    low, high = bootstrap_interval(values, range(800))
    half = 1.96 * values.std() / np.sqrt(800)
    assert low == pytest.approx(values.mean() - half, abs=0.004)
    assert high == pytest.approx(values.mean() + half, abs=0.004)


def test_questions_that_agree_within_their_group_widen_it():
    """Ten copies of each value say no more than one: the interval is sqrt(10) times that of independent ones."""
    rng = np.random.default_rng(1)
    once = (rng.random(100) < 0.5).astype(float)
    values, groups = np.repeat(once, 10), np.repeat(np.arange(100), 10)
    low, high = bootstrap_interval(values, groups)
    alone = bootstrap_interval(once, range(100))
    assert (low, high) == pytest.approx(tuple(alone), abs=1e-9)
    assert high - low > 2.5 * (lambda i: i.high - i.low)(bootstrap_interval(values, range(1000)))


def test_groups_of_unequal_size_weigh_by_their_questions():
    low, high = bootstrap_interval([1.0] * 9 + [0.0], ["a"] * 9 + ["b"])
    assert (low, high) == (0.0, 1.0)
    assert bootstrap_interval([0.25] * 5, [1, 1, 2, 3, 3]) == (0.25, 0.25)


def test_nothing_to_draw_from():
    with pytest.raises(ValueError, match="0 values"):
        bootstrap_interval([], [])
    with pytest.raises(ValueError, match="2 values with 1 groups"):
        bootstrap_interval([1, 2], [1])


def test_many_groups_are_drawn_in_pieces_that_change_nothing(monkeypatch):
    values, groups = [float(number % 3 == 0) for number in range(60)], [number // 2 for number in range(60)]
    whole = bootstrap_interval(values, groups, draws=500)
    monkeypatch.setattr("llava.eval.metrics.bootstrap._KEPT", 1000)
    assert bootstrap_interval(values, groups, draws=500) == whole
