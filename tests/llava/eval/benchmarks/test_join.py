"""Answers find their questions by id; what does not fit is told."""

import json

import pytest

from llava.eval.benchmarks.join import join, read_answers
from llava.eval.sample import Sample


def key(row):
    return str(row["question_id"])


def samples(*ids):
    return [Sample(one, (str(one),)) for one in ids]


def said(*pairs):
    return [{"question_id": one, "text": text} for one, text in pairs]


def test_order_does_not_matter():
    joined = join(samples(1, 2, 3), said((3, "c"), ("1", "a"), (2, "b")), key)
    assert [one.text for one in joined.samples] == ["a", "b", "c"]
    assert (joined.missing, joined.unknown, joined.repeated) == ([], [], 0)


def test_missing_unknown_and_repeated_are_told():
    joined = join(samples(1, 2, 3), said((1, "a"), (9, "x"), (1, "a")), key)
    assert (joined.missing, joined.unknown, joined.repeated) == ([2, 3], [9], 1)


def test_two_different_answers_are_refused():
    with pytest.raises(ValueError, match="question 1 has two answers, 'a' and 'b'"):
        join(samples(1), said((1, "a"), (1, "b")), key)


def test_answers_to_something_else_are_refused():
    with pytest.raises(ValueError, match=r"none of the 2 answers \(first: 7\) belongs"):
        join(samples(1), said((7, "a"), (8, "b")), key)


def test_no_answers_yet():
    assert join(samples(1, 2), [], key).missing == [1, 2]


def test_questions_that_share_a_key_take_their_answers_in_order():
    joined = join(samples(1, 1), said((1, "a"), (1, "b")), key)
    assert [one.text for one in joined.samples] == ["a", "b"]
    with pytest.raises(ValueError, match="two answers"):
        join(samples(1, 1), said((1, "a"), (1, "b"), (1, "c")), key)


def test_any_key_will_do_and_counts_once():
    sample = Sample(5, ("5", ("image", "why?")))
    assert join([sample], said((5, "a")), key).samples[0].text == "a"
    mixed = iter(["5", ("image", "why?")])
    assert join([sample], said((5, "a"), (5, "a")), lambda row: next(mixed)).repeated == 1


def test_an_empty_answer_is_an_answer():
    assert join(samples(1), said((1, "")), key).missing == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"question_id": 1}', "line 2 has no question_id or no text"),
        ('{"question_id": 1, "text": null}', "line 2 has no question_id or no text"),
        ('{"text": "a"}', "line 2 has no question_id or no text"),
        ("{", "line 2 is not JSON"),
        ("[1]", "entry 2 is not a JSON object"),
    ],
)
def test_lines_that_are_no_answers(tmp_path, line, reason):
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps(said((1, "a"))[0]) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=reason):
        read_answers(file)
    with pytest.raises(ValueError, match="does not exist"):
        read_answers(tmp_path / "none.jsonl")
