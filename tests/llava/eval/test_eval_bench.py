"""The throughput benchmark runs, compares the same answers, and says what it measured. No time is asserted."""

import json

import pytest

from llava.eval import bench


@pytest.fixture
def command(question_folder, llava_folder):
    return [
        *("--model-path", str(llava_folder), "--question-file", str(question_folder / "questions.jsonl")),
        *("--image-folder", str(question_folder / "images"), "--device", "cpu"),
    ]


def test_every_combination_answers_alike(command, capsys):
    bench.main(
        [*command, "--pruner", "fastervlm:budget=5", "--batch", "1", "3", "--workers", "0", "1", "--rounds", "2"]
    )
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(row["pruner"], row["batch"], row["workers"]) for row in found["rows"]] == [
        (pruner, batch, workers) for pruner in ("none", "fastervlm:budget=5") for batch in (1, 3) for workers in (0, 1)
    ]
    assert all(row["same_answers"] and row["min"] <= row["questions_per_second"] <= row["max"] for row in found["rows"])
    assert found["rows"][0]["ratio"] == 1
    assert (found["questions"], found["rounds"]) == (8, 2)
    assert found["versions"]["torch"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch", "0"], "--batch 0 is invalid"),
        (["--workers", "-1"], "--workers -1 is invalid"),
        (["--pruner", "nonsense:budget=4"], "nonsense"),
        (["--image-folder", "/no/such"], "does not exist; the benchmark needs questions without faults"),
    ],
)
def test_bad_input_is_one_line(command, flags, message):
    with pytest.raises(SystemExit, match=message):
        bench.main([*command, "--pruner", "random:budget=5", *flags])
