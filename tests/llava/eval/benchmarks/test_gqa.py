"""GQA: question file, exact equality, types, distribution, prediction file."""

import ast
import json

import pytest

from llava.eval.benchmarks import gqa
from llava.eval.sample import Sample, Score

TRUTH = {"20100": "red", "20101": "blue", "20102": "no", "20103": "white", "20104": "man"}


def test_the_golden_pairs(parser_pairs):
    pairs = parser_pairs("gqa_convert")
    assert len(pairs) == 5
    for given, _, wanted in pairs:
        assert gqa.parse(ast.literal_eval(given)) == wanted


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("red", 1),
        ("Red.", 1),
        ("RED...", 1),
        ("red ", 0),
        (" red", 0),
        ("the red", 0),
        ("red!", 0),
        ("", 0),
        ("red .", 0),
    ],
)
def test_tricky_answers(text, right):
    assert gqa.score(Sample("1", ("1",), "red", text=text)).value == right


def test_the_question_file(folder_of):
    bench, split, folder = folder_of("gqa")
    prepared = bench.prepare(folder, split)
    rows = [json.loads(line) for line in prepared.question_file.read_text().splitlines()]
    assert prepared.question_file.name == "llava_gqa_testdev_balanced.jsonl"
    assert [row["question_id"] for row in rows] == list(TRUTH)  # the unbalanced one is left out
    assert rows[0] == {
        "question_id": "20100",
        "image": "n0.jpg",
        "text": "What color is the square?\nAnswer the question using a single word or phrase.",
        "category": "default",
    }
    assert (prepared.images, prepared.absent, prepared.built) == (folder / "data/images", [], True)


def test_scores_by_hand(folder_of, scored_with):
    """Right: 20100, 20102, 20104; wrong: 20101 (red for blue), 20103 (red for white)."""
    answers = {**TRUTH, "20101": "red", "20103": "red"}
    summary, _ = scored_with(folder_of("gqa"), lambda row: answers[row["question_id"]].capitalize() + ".")
    assert (summary["main"], summary["n"], summary["missing"]) == (60.0, 5, 0)
    assert summary["parts"]["kind"] == {"binary": {"value": 50.0, "n": 2}, "open": {"value": 66.6667, "n": 3}}
    assert summary["parts"]["structural"]["choose"] == {"value": 0.0, "n": 1}
    assert summary["parts"]["words"]["3"] == {"value": 100.0, "n": 1}
    # "query: name" asks for a name and is no step, so question 20100 has one step and the others two
    assert summary["parts"]["steps"] == {"1": {"value": 100.0, "n": 1}, "2": {"value": 50.0, "n": 4}}
    # color: wanted red, blue, white once each, given red three times: (3-1)^2 + 1 + 1 = 6, of 3 questions;
    # person: as wanted, 0, of 1 question -> (6 * 3 + 0 * 1) / 4
    assert summary["parts"]["distribution"]["chi-square"] == {"value": 4.5, "n": 4}


def test_distribution_over_nothing_is_missing():
    assert (
        gqa.distribution([Score("1", 1.0, "x", "x", {"group": None}), Score("2", None, None, "x", {"group": "g"})])
        is None
    )


def test_prediction_file(folder_of, tmp_path):
    bench, split, folder = folder_of("gqa")
    samples = [Sample("20100", ("20100",), "red", text="Red."), Sample("20101", ("20101",), "blue")]
    file = bench.export(folder, split, samples, tmp_path / "run")
    assert file.name == "run.predictions.json"
    assert json.loads(file.read_text()) == [{"questionId": "20100", "prediction": "red"}]
