"""Means over a judge's runs."""

from statistics import fmean

from llava.eval.benchmarks.runs import contains, mean_of, offline, over_runs, percent_of_runs
from llava.eval.sample import Score


def test_each_run_has_its_mean_and_the_runs_have_one():
    found = percent_of_runs([(1.0, 0.0), (0.5, 0.5), (0.0, 0.1)])
    # runs: 50 and 20, their mean 35, deviation over n 15
    assert found == {"value": 35.0, "n": 3, "std": 15.0, "runs": [50.0, 20.0]}


def test_failed_verdicts_are_left_out_of_their_run_alone():
    found = percent_of_runs([(1.0, None), (0.0, 0.4), (None, None)])
    assert found == {"value": 45.0, "n": 2, "std": 5.0, "runs": [50.0, 40.0]}


def test_no_verdicts_no_number():
    nothing = {"value": None, "n": 0, "std": None, "runs": []}
    assert percent_of_runs([]) == percent_of_runs([(), ()]) == percent_of_runs([(None,)]) == nothing
    assert mean_of([]) is mean_of([None]) is None
    assert mean_of([None, 1.0, 0.0]) == 0.5


def test_a_run_without_a_number_is_left_out():
    found = over_runs([(0, 4), (0, 6)], lambda values: fmean(values) or None)
    assert (found["value"], found["runs"]) == (5.0, [5.0])


def test_offline_metrics_come_from_the_parts():
    scores = [Score(0, None, parts={"exact": 1.0}), Score(1, None, parts={"exact": 0.0}), Score(2, None)]
    assert offline(scores, "exact")["exact"]["value"] == 50.0
    assert offline(scores, "exact")["exact"]["n"] == 2


def test_words_stand_for_themselves():
    assert contains("it is red wine", "red wine")
    assert contains("red", "red")
    assert not contains("it is sacred", "red")
    assert not contains("red dark wine", "red wine")
    assert not contains("anything", "")
