"""One specification from question file to score, by the library; the launcher means the same by its flags."""

import json

import pytest

from llava.eval import launch
from llava.eval.answering.evaluate import EvaluationSpec, evaluate
from llava.eval.answering.settings import AnswerSettings
from llava.eval.judge.settings import JudgeSettings
from tests.llava.eval.data_tree import make_data_tree
from tests.llava.eval.in_this_process import answer_in_this_process


@pytest.fixture
def spec(tmp_path, llava_folder, monkeypatch):
    answer_in_this_process(monkeypatch)
    data = make_data_tree(tmp_path / "eval", ("gqa", "sqa"))
    settings = AnswerSettings(batch_size=3, max_new_tokens=4)
    return EvaluationSpec(
        "gqa", str(llava_folder), "fastervlm:budget=5", data=data, answering=settings, devices="cpu,cpu"
    )


def flags_of(spec):
    told = ["--data", str(spec.data), "--model-path", spec.model, "--pruner", spec.pruner, "--devices", spec.devices]
    return [spec.benchmark, *told, "--batch-size", "3", "--max_new_tokens", "4"]


def test_from_a_specification_to_a_score(spec):
    scored = evaluate(spec)
    assert (scored.summary["benchmark"], scored.summary["n"], scored.summary["missing"]) == ("gqa", 5, 0)
    assert scored.table.startswith("GQA, testdev_balanced: accuracy")
    merged = spec.answers_file
    assert len(merged.read_text("utf-8").splitlines()) == 5
    assert merged.with_name("merge.scores.json").is_file()
    chunk = json.loads((spec.answers_folder / "2_0.settings.json").read_text("utf-8"))
    known = spec.known_settings()
    assert known.items() <= chunk.items()
    assert (known["max_new_tokens"], known["temperature"]) == (4, 0.0)
    assert "FasterVLM" in known["pruner"]
    before = merged.stat().st_mtime_ns, merged.read_bytes()
    assert evaluate(spec).summary == scored.summary
    assert merged.read_bytes() == before[1]


def test_the_launchers_flags_are_a_specification(spec):
    assert launch.spec_of(flags_of(spec)) == spec


def test_another_node_is_waited_for(spec, llava_folder):
    first = EvaluationSpec(**{**fields_of(spec), "nodes": 2, "node": 1, "limit": 2})
    assert evaluate(first) is None
    second = EvaluationSpec(**{**fields_of(spec), "nodes": 2, "node": 0, "limit": 2})
    assert evaluate(second).summary["labels"][0] == "subset"


def fields_of(spec):
    return {name: getattr(spec, name) for name in EvaluationSpec.__dataclass_fields__}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"benchmark": "nothing"}, "no benchmark 'nothing'"),
        ({"split": "train"}, "gqa has no split 'train'"),
        ({"pruner": "flowcat:budget=5"}, "unknown pruner"),
        ({"nodes": 2, "node": 2}, "--node 2 of 2 does not exist"),
        ({"limit": 0}, "limit=0 leaves no question"),
    ],
)
def test_what_cannot_be_is_refused_at_once(spec, changes, message):
    with pytest.raises(ValueError, match=message):
        EvaluationSpec(**{**fields_of(spec), **changes})


def test_questions_that_failed_are_an_error(spec):
    next((spec.data / "gqa").rglob("*.jpg")).write_bytes(b"no picture")
    with pytest.raises(ValueError, match="not every question was answered"):
        evaluate(spec)
    assert evaluate(EvaluationSpec(**{**fields_of(spec), "skip_bad": True})).summary["missing"] > 0


def test_a_judge_for_a_benchmark_that_needs_none_is_refused(spec, tmp_path):
    judge = JudgeSettings(requests=tmp_path / "requests.jsonl")
    with pytest.raises(ValueError, match="scored without a judge"):
        evaluate(EvaluationSpec(**{**fields_of(spec), "judge": judge}))
