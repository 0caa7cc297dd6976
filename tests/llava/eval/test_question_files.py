"""Reading question files, subsets and chunks."""

import json
from itertools import pairwise

import pytest

from llava.eval.questions import Question, chunk, read_questions, subset

GOOD = {"question_id": 7, "image": "a.png", "text": "why?", "category": "x"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{broken", "Expecting"),
        ("[1, 2]", "not a JSON object"),
        (json.dumps({"question_id": 1, "text": "why?"}), "no image"),
        (json.dumps(GOOD | {"text": 3}), "text=3 is not text"),
        (json.dumps(GOOD | {"image": ""}), "image='' is not text"),
        (json.dumps(GOOD | {"question_id": None}), "question_id=None is not a number or text"),
        (json.dumps(GOOD | {"text": "<image>\nwhy?"}), "its text contains <image>"),
    ],
)
def test_a_bad_row_is_named_and_the_others_are_read(tmp_path, row, reason):
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps(GOOD) + "\n\n" + row + "\n" + json.dumps(GOOD | {"question_id": "b"}))
    questions, [problem] = read_questions(file)
    assert questions == [Question(7, ("a.png",), "why?"), Question("b", ("a.png",), "why?")]
    assert problem.where == "q.jsonl line 3"
    assert reason in problem.what


def test_line_separators_inside_a_question_are_no_line_ends(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps(GOOD | {"text": "a\u2028b"}, ensure_ascii=False) + "\n", "utf-8")
    assert read_questions(file) == ([Question(7, ("a.png",), "a\u2028b")], [])


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        read_questions(tmp_path / "none.jsonl")


@pytest.mark.parametrize("limit", [1, 3, 7, 10, 99])
def test_a_subset_spreads_evenly(limit):
    chosen = subset(range(10), limit)
    assert len(chosen) == min(limit, 10)
    steps = {b - a for a, b in pairwise(chosen)}
    assert chosen[0] == 0
    assert max(steps, default=1) - min(steps, default=1) <= 1
    assert min(steps, default=1) >= 1


def test_no_limit_and_a_senseless_one():
    assert subset("abc", None) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="limit=0"):
        subset("abc", 0)


@pytest.mark.parametrize(("length", "chunks"), [(10, 3), (2, 5), (0, 2), (9, 3)])
def test_chunks_follow_each_other_without_gap(length, chunks):
    pieces = [chunk(range(length), chunks, index) for index in range(chunks)]
    assert [item for piece in pieces for item in piece] == list(range(length))
    assert max(map(len, pieces)) == -(-length // chunks)


def test_a_chunk_that_does_not_exist():
    with pytest.raises(ValueError, match="chunk 3 of 3"):
        chunk(range(9), 3, 3)
