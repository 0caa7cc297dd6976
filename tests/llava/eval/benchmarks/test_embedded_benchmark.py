"""The embedded benchmark's metric."""

import json

import pytest

from llava.eval import score as program
from llava.eval.benchmarks.embedded import BENCHMARK, aggregate, normalise, score
from llava.eval.sample import Sample, Score


def sample(text: str | None, answer: str = "yes", category: str = "exist", scene: int = 0) -> Sample:
    return Sample("q", ("q",), answer, {"category": category, "scene": scene}, text=text)


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
    assert score(sample(text, answer)).value == right


def test_normalise_leaves_inner_periods():
    assert normalise(" A.B. ") == "a.b"


def test_a_missing_answer_is_missing_and_not_wrong():
    assert aggregate([score(sample("yes")), score(sample(None))]) == {
        "main": 100.0,
        "n": 1,
        "missing": 1,
        "ci95": [100.0, 100.0],
        "parts": {"category": {"exist": {"value": 100.0, "n": 1, "ci95": [100.0, 100.0]}}},
    }
    nothing = {"main": None, "n": 0, "missing": 0, "ci95": None, "parts": {"category": {}}}
    assert aggregate([]) == nothing


def test_aggregate_by_category():
    rows = [(1.0, "b", 0), (0.0, "a", 0), (1.0, "a", 1), (0.0, "a", 2)]
    scores = [Score("q", value, parts={"category": category, "scene": scene}) for value, category, scene in rows]
    summary = aggregate(scores)
    assert (summary["n"], summary["main"]) == (4, 50.0)
    assert list(summary["parts"]["category"]) == ["a", "b"]
    assert summary["parts"]["category"]["a"]["value"] == pytest.approx(100 / 3, abs=0.01)
    low, high = summary["ci95"]
    assert low <= 50 <= high


def test_the_program_joins_by_id_and_ends_with_json(tmp_path, capsys):
    folder = tmp_path / "embedded"
    (folder / "images").mkdir(parents=True)
    questions = [{"question_id": f"t-{n}", "image": "x.png", "text": "?"} for n in range(3)]
    truth = [{"question_id": f"t-{n}", "answer": "yes", "category": "exist", "scene": n} for n in range(3)]
    said = [{"question_id": "t-2", "text": "no"}, {"question_id": "t-0", "text": "Yes."}]
    for name, lines in (("answers", truth), ("said", said), ("questions", questions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    program.main(["embedded", "--data", str(tmp_path), "--answers-file", str(folder / "said.jsonl")])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["n"], last["missing"], last["main"]) == (2, 1, 50.0)
    with pytest.raises(SystemExit, match=r"error: .*none\.jsonl does not exist"):
        program.main(["embedded", "--data", str(tmp_path), "--answers-file", str(folder / "none.jsonl")])


def test_what_is_missing_is_said_with_how_to_make_it(tmp_path):
    (tmp_path / "embedded").mkdir()
    with pytest.raises(ValueError, match=r"scripts\.embedded\.data"):
        BENCHMARK.build(tmp_path / "embedded", BENCHMARK.split())
