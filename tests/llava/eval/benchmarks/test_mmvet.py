"""MM-Vet: files, the judge's table, grades, totals; and the proxy that is not MM-Vet."""

import json
from dataclasses import replace

import pytest

from llava.eval.benchmarks.mmvet import BENCHMARK, containment, messages, parse, temperature
from llava.eval.sample import JudgeReply, Verdict
from tests.llava.eval.data_tree import write_answers
from tests.llava.eval.data_tree_judged import make_mmvet

SPLIT = BENCHMARK.split()


@pytest.fixture
def folder(tmp_path):
    make_mmvet(tmp_path / "mm-vet")
    return tmp_path / "mm-vet"


@pytest.fixture
def read(folder, tmp_path):
    """The samples with answers by a function of the row."""

    def answered(reply):
        rows = BENCHMARK.rows(folder, SPLIT)
        file = write_answers(tmp_path / "answers.jsonl", rows, reply)
        return BENCHMARK.read(folder, file, SPLIT).samples

    return answered


def judged(samples, *grades):
    """Samples with a tuple of grades each."""
    return [
        replace(sample, verdicts=tuple(Verdict(grade, JudgeReply(str(grade), "m", "")) for grade in own))
        for sample, own in zip(samples, grades, strict=True)
    ]


def test_the_question_file_is_llavas(folder):
    prepared = BENCHMARK.prepare(folder, SPLIT)
    assert prepared.question_file.name == "llava-mm-vet.jsonl"
    assert json.loads(prepared.question_file.read_text().splitlines()[3]) == {
        "image": "v1_3.png",
        "text": "Why is this strange?",
        "category": "conv",
        "question_id": 3,
    }
    assert (prepared.questions, prepared.absent) == (4, [])


def test_both_names_of_the_folder(tmp_path):
    make_mmvet(tmp_path / "mmvet")
    assert BENCHMARK.folder(tmp_path, SPLIT) == tmp_path / "mmvet"


def test_grades_by_hand(read):
    samples = judged(read(lambda row: "x"), (0.5, 1.0), (1.0, 1.0), (0.0, 0.1), (0.3, 0.2))
    scores = [BENCHMARK.score(sample) for sample in samples]
    assert [score.value for score in scores] == [0.75, 1.0, 0.05, 0.25]
    summary = BENCHMARK.aggregate(scores)
    # runs: 1.8 / 4 = 45 and 2.3 / 4 = 57.5
    assert summary["main"] == 51.25
    assert summary["parts"]["total"]["over runs"] == {"value": 51.25, "n": 4, "std": 6.25, "runs": [45.0, 57.5]}
    capability = {name: (part["value"], part["n"]) for name, part in summary["parts"]["capability"].items()}
    assert capability == {
        "gen": (25.0, 1),
        "math": (40.0, 2),  # (0.75 + 0.05) / 2
        "ocr": (40.0, 2),
        "rec": (62.5, 2),  # (1 + 0.25) / 2
    }
    combination = {name: (part["value"], part["n"]) for name, part in summary["parts"]["combination"].items()}
    assert combination == {"gen_rec": (25.0, 1), "math_ocr": (40.0, 2), "rec": (100.0, 1)}
    assert (summary["n"], summary["missing"]) == (4, 0)


def test_without_a_judge_the_score_is_missing_and_the_proxy_has_another_name(read):
    summary = BENCHMARK.aggregate([BENCHMARK.score(sample) for sample in read(lambda row: "It is lime, -1.")])
    assert summary["main"] is None
    assert (summary["n"], summary["missing"]) == (0, 0)
    assert summary["parts"]["capability"]["rec"]["value"] is None
    # -1 of two, lime of either, neither of the others
    assert summary["parts"]["not MM-Vet"]["containment"]["value"] == 100 * (0.5 + 1) / 4


def test_unanswered_questions_are_missing(read):
    samples = read(lambda row: "x" if row["question_id"] else None)
    summary = BENCHMARK.aggregate([BENCHMARK.score(sample) for sample in samples])
    assert (summary["missing"], summary["parts"]["not MM-Vet"]["containment"]["n"]) == (1, 3)


def test_the_last_row_of_the_table_waits_for_its_grade(read):
    sample = read(lambda row: "x = 5")[0]
    texts = BENCHMARK.judge.prompts
    [message] = messages(sample, texts, 1)
    table, _, row = message["content"].rpartition("\n")
    assert row == "Which numbers solve it? | -1 <AND> 5 | x = 5 | "
    assert table.startswith(texts["table"])
    assert message["role"] == "user"
    [again] = messages(sample, texts, 2)
    assert again["content"] == message["content"] + texts["again"]


def test_every_example_of_the_table_is_a_row_with_a_grade():
    rows = BENCHMARK.judge.prompts["table"].split("--- | --- | --- | ---\n")[1].strip().split("\n")
    assert len(rows) == 7
    assert all(len(row.split(" | ")) == 4 and parse(row.split(" | ")[3]) is not None for row in rows)


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("0.5", 0.5),
        ("1.0", 1.0),
        ("0", 0.0),
        ("0.3 because", 0.3),
        ("0.7\n", 0.7),
        ("", None),
        (" 0.5", None),
        ("0.5.", None),
        ("1.1", None),
        ("-0.1", None),
        ("nan", None),
        ("inf", None),
        ("right", None),
    ],
)
def test_parse(reply, grade):
    assert parse(reply) == grade


def test_temperatures_of_the_five_attempts():
    assert [temperature(attempt) for attempt in range(1, BENCHMARK.judge.attempts + 1)] == [0, 0, 0.5, 1, 1.5]


@pytest.mark.parametrize(
    ("text", "truth", "share"),
    [
        ("x = -1 or x = -5", "-1 <AND> -5", 1.0),
        ("x = 1 or x = 5", "-1 <AND> -5", 0.0),
        ("x = -5", "-1<AND>-5", 0.5),
        ("The Eiffel tower.", "eiffel tower <OR> paris", 1.0),
        ("It is in Paris!", "eiffel tower <OR> paris", 1.0),
        ("rome", "eiffel tower <OR> paris", 0.0),
        ("a <AND> alone", "b<AND>c<OR>d<AND>alone", 0.5),
        ("two apples", "2", 1.0),
        ("12", "2", 0.0),
        ("", "yes", 0.0),
    ],
)
def test_containment(text, truth, share):
    assert containment(text, truth) == share


def test_the_upload_is_the_evaluators_dictionary(read, folder, tmp_path):
    samples = read(lambda row: f"said {row['question_id']}" if row["question_id"] != 2 else None)
    file = BENCHMARK.export(folder, SPLIT, samples, tmp_path / "answers")
    assert json.loads(file.read_text()) == {"v1_0": "said 0", "v1_1": "said 1", "v1_3": "said 3"}
