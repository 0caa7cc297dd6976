"""The embedded benchmark's metric."""

import json

import pytest

from llava.eval.benchmarks.embedded import Sample, Score, aggregate, main, normalise, score, scores


def sample(text: str | None, answer: str = "yes", category: str = "exist", scene: int = 0) -> Sample:
    return Sample("q", answer, category, scene, text)


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("yes", "yes", 1.0),
        ("Yes.", "yes", 1.0),
        ("  top left \n", "top left", 1.0),
        ("Yes .", "yes", 1.0),
        ("K", "k", 1.0),
        ("no", "yes", 0.0),
        ("yes it is", "yes", 0.0),
        ("", "yes", 0.0),
        ("top  left", "top left", 0.0),
        ("yes..", "yes", 0.0),
    ],
)
def test_score(text, answer, right):
    assert score(sample(text, answer)) == right


def test_normalise_leaves_inner_periods():
    assert normalise(" A.B. ") == "a.b"


def test_a_missing_answer_is_missing_and_not_wrong():
    with pytest.raises(ValueError, match="has no answer"):
        score(sample(None))
    assert aggregate(scores([sample("yes"), sample(None)])) == {
        "n": 1,
        "accuracy": 1.0,
        "ci95": [1.0, 1.0],
        "categories": {"exist": {"n": 1, "accuracy": 1.0, "ci95": [1.0, 1.0]}},
    }
    assert aggregate([]) == {"n": 0, "accuracy": None, "ci95": None, "categories": {}}


def test_aggregate_by_category():
    summary = aggregate([Score(1.0, "b", 0), Score(0.0, "a", 0), Score(1.0, "a", 1), Score(0.0, "a", 2)])
    assert (summary["n"], summary["accuracy"]) == (4, 0.5)
    assert list(summary["categories"]) == ["a", "b"]
    assert summary["categories"]["a"]["accuracy"] == pytest.approx(1 / 3, abs=1e-4)
    low, high = summary["ci95"]
    assert low <= 0.5 <= high


def test_the_program_joins_by_id_and_ends_with_json(tmp_path, capsys):
    truth = [{"question_id": f"t-{n}", "answer": "yes", "category": "exist", "scene": n} for n in range(3)]
    said = [{"question_id": "t-2", "text": "no"}, {"question_id": "t-0", "text": "Yes."}]
    for name, lines in (("answers", truth), ("said", said)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    main(["--data", str(tmp_path), "--answers-file", str(tmp_path / "said.jsonl")])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["n"], last["missing"], last["accuracy"]) == (2, 1, 0.5)
    with pytest.raises(SystemExit, match=r"error: .*none\.jsonl does not exist"):
        main(["--data", str(tmp_path), "--answers-file", str(tmp_path / "none.jsonl")])
