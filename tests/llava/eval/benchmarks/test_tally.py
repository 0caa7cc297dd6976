"""Means with what is missing left out."""

from llava.eval.benchmarks.tally import accuracy, by_part, mean, percent, total
from llava.eval.sample import Score


def test_missing_scores_are_in_no_mean():
    scores = [Score(1, 1.0), Score(2, None, answered=False), Score(3, 0.0), Score(4, None)]
    assert percent(scores) == {"value": 50.0, "n": 2}
    assert percent(scores[1:2]) == {"value": None, "n": 0}
    summary = accuracy(scores)
    assert (summary["main"], summary["n"], summary["missing"]) == (50.0, 2, 1)
    assert accuracy([])["main"] is None


def test_parts_are_sorted_and_may_be_absent():
    scores = [
        Score(1, 1.0, parts={"words": 10}),
        Score(2, 1.0, parts={"words": 9}),
        Score(3, 0.0, parts={"words": None}),
    ]
    assert list(by_part(scores, "words")) == ["9", "10"]
    assert by_part(scores, "nothing") == {}


def test_a_sum_or_mean_over_something_missing_is_missing():
    assert total([1.0, 2.5]) == 3.5
    assert mean([1.0, 2.0]) == 1.5
    for values in ([1.0, None], []):
        assert total(values) is None
        assert mean(values) is None
