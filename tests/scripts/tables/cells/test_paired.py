"""Cells compared on the questions they share."""

import pytest

from scripts.tables.cells.paired import Shared

ONE = {"questions": "a b c d", "scenes": "0 0 1 1", "types": "x y x y", "scores": "1 0 1 1"}
OTHER = {"questions": "d b a e", "scenes": "1 0 0 2", "types": "y y x x", "scores": "0 1 1 0"}


def test_only_shared_questions_count():
    shared = Shared.of([ONE, OTHER])
    assert shared.questions == ("a", "b", "d")
    assert shared.scores == ((100, 0, 100), (100, 100, 0))
    assert shared.accuracy(0).value == pytest.approx(200 / 3)
    assert shared.by_type(0) == {"x": 100, "y": 50}
    assert shared.difference(0, 1).value == 0
    mean = shared.accuracy(1)
    assert mean.low <= mean.value <= mean.high


def test_scenes_are_drawn_whole():
    """Both questions of scene 0 are right or wrong together, so its mean's interval is as wide as can be."""
    cell = {"questions": "a b c d", "scenes": "0 0 1 1", "types": "x x x x", "scores": "1 1 0 0"}
    mean = Shared.of([cell]).accuracy(0)
    assert (mean.low, mean.value, mean.high) == (0, 50, 100)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="share no question"):
        Shared.of([ONE, OTHER | {"questions": "e f g h"}])
    with pytest.raises(ValueError, match="of different data"):
        Shared.of([ONE, OTHER | {"scenes": "1 5 0 2"}])
