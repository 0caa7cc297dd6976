"""The interval that goes with a score, by the rules of `metrics.intervals`, and where there is none."""

import json

import pytest

from llava.eval.benchmarks.registry import benchmark
from llava.eval.benchmarks.scoring import interval, score_answers
from llava.eval.judge.client import Endpoint
from llava.eval.judge.settings import JudgeSettings
from llava.eval.metrics.bootstrap import bootstrap_interval
from llava.eval.metrics.intervals import jackknife_interval
from tests.llava.eval.data_tree import make_data_tree, write_answers
from tests.llava.eval.data_tree_judged import make_judged_tree
from tests.llava.eval.judge.fake_judge import serving


@pytest.fixture
def score(tmp_path):
    """`score(benchmark, reply)` -> the document, and the scores of the questions."""
    data = make_data_tree(tmp_path / "eval")

    def scored(name, reply, split=None):
        bench = benchmark(name)
        own = bench.split(split)
        folder = bench.folder(data, own)
        rows = bench.rows(folder, own)
        file = write_answers(tmp_path / "answers.jsonl", rows, reply)
        summary = score_answers(bench, own, folder, file).summary
        assert json.loads((tmp_path / "answers.scores.json").read_text("utf-8")) == summary
        return summary, [bench.score(one) for one in bench.read(folder, file, own).samples], rows

    return scored


def test_a_percentage_of_questions_is_drawn_over_their_pictures(score):
    summary, scores, rows = score("gqa", lambda row: "red")
    pictures = {row["question_id"]: row["image"] for row in rows}
    ends = bootstrap_interval([one.value for one in scores], [pictures[one.question_id] for one in scores])
    assert summary["ci95"] == pytest.approx([100 * end for end in ends], abs=1e-4)
    assert summary["ci95_over"] == "pictures"


def test_another_number_is_jackknifed(score):
    summary, scores, rows = score("pope", lambda row: "yes" if row["question_id"] % 2 else "no")
    pictures = {row["question_id"]: row["image"] for row in rows}
    bench = benchmark("pope")
    ends = jackknife_interval(
        scores, [pictures[one.question_id] for one in scores], summary["main"], lambda own: bench.aggregate(own)["main"]
    )
    assert summary["ci95"] == (None if ends is None else pytest.approx(list(ends), abs=1e-4))


def test_without_a_number_there_is_no_interval(score):
    summary, _, _ = score("vqav2", lambda row: "a cup")
    assert (summary["main"], summary["ci95"], summary["ci95_over"]) == (None, None, None)


def test_a_benchmarks_own_interval_is_taken():
    bench = benchmark("embedded")
    assert interval(bench, bench.split(), None, [], {"main": 50.0, "ci95": [40.0, 60.0]}) == {
        "ci95": [40.0, 60.0],
        "ci95_over": "scenes",
    }


def test_a_judges_number_has_no_interval(tmp_path):
    data = make_judged_tree(tmp_path / "eval", ("mmvet",))
    bench = benchmark("mmvet")
    folder = bench.folder(data, bench.split())
    file = write_answers(tmp_path / "answers.jsonl", bench.rows(folder, bench.split()), lambda row: "red")
    with serving(lambda body, number: "0.5") as judge:
        settings = JudgeSettings(endpoint=Endpoint(judge.url, pause=0.01))
        summary = score_answers(bench, bench.split(), folder, file, settings).summary
    assert summary["main"] == pytest.approx(50)
    assert (summary["ci95"], summary["ci95_over"]) == (None, None)
