"""What is said before a table is measured: questions, answers that are there, and the time."""

import json
from dataclasses import dataclass

import pytest

from llava.forecast import PAPER_SECONDS
from scripts.tables.cells.plan import Work, answer_times, estimate, plan_of
from scripts.tables.paper import table05


@dataclass(frozen=True)
class Spec:
    model: str = "liuhaotian/llava-v1.5-7b"
    benchmark: str = "pope"
    pruner: str = "none"
    family: str = "v1_5"


def test_without_answers_the_papers_milliseconds_count():
    """17:05 and 35:16 for the 8,910 questions of POPE, by the paper, whose table 5 is here in milliseconds."""
    printed = [row.printed[0] for row in table05.TABLE.rows if row.pruner == "none"]
    assert [1000 * PAPER_SECONDS[family] for family in ("v1_5", "v1_6")] == pytest.approx(printed, abs=0.1)
    said = plan_of([Work(Spec(), 8910, ())], {"another/model": [5000.0]})
    assert said.startswith("1 cells are measured, 8910 answers are missing: about 17 minutes on one GPU (by 115.0 ms")
    assert "the paper's unpruned LLaVA-1.5-7B on an A800" in said
    other = estimate([Work(Spec("liuhaotian/llava-v1.6-vicuna-7b", family="v1_6"), 8910, ())], {})
    assert other.startswith("about 35 minutes on one GPU (by 237.5 ms")


def test_where_the_paper_has_no_time_none_is_made_up(monkeypatch):
    todo = [Work(Spec("Qwen/Qwen2-VL-7B-Instruct", family="qwen2_vl"), 3600, ())]
    assert estimate(todo, {}) == "no time is known for 3600 answers, SECONDS_PER_ANSWER=s sets one"
    monkeypatch.setenv("SECONDS_PER_ANSWER", "2")
    assert estimate(todo, {}) == "about 2.0 hours on one GPU (by SECONDS_PER_ANSWER=2)"
    assert plan_of([], {}) == "every cell is there"


def test_answers_that_are_there_count_of_the_same_model():
    todo = [Work(Spec(), 100, (2000.0, 4000.0)), Work(Spec(pruner="random:budget=3"), 7200 + 2, ())]
    assert estimate(todo[1:], {Spec().model: [500.0]}) == (
        "about 1.0 hours on one GPU (by the median of 1 answers that are there)"
    )
    said = plan_of(todo, {Spec().model: [3000.0]})
    assert said.startswith("2 cells are measured, 7300 answers are missing and 2 are there: about 6.1 hours")
    assert "median of 3 answers" in said
    assert str(todo[0]) == "pope, none, liuhaotian/llava-v1.5-7b: 100 questions, 2 answered before"


def test_times_are_those_of_the_answers(tmp_path):
    """Of chunks before they are joined, of the joined file after; half lines and notes on bad rows do not count."""
    lines = [json.dumps({"question_id": number, "metadata": {"ms": 10.0 + number}}) for number in range(4)]
    (tmp_path / "2_0.jsonl").write_text("\n".join(lines[:2]) + "\n")
    (tmp_path / "2_1.jsonl").write_text(lines[2] + '\n{"question_id": 9, "met')
    (tmp_path / "2_1.bad.jsonl").write_text(lines[3] + "\n")
    assert answer_times(tmp_path) == (10.0, 11.0, 12.0)
    (tmp_path / "merge.jsonl").write_text("\n".join(lines) + "\n")
    assert answer_times(tmp_path) == (10.0, 11.0, 12.0, 13.0)
    assert answer_times(tmp_path / "absent") == ()
