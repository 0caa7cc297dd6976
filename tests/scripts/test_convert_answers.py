"""The convert scripts: LLaVA's flags, the files that evaluators and servers read."""

import json

import pytest

from llava.eval.benchmarks.registry import benchmark
from scripts import (
    convert_answer_to_mme,
    convert_gqa_for_eval,
    convert_mmbench_for_submission,
    convert_mmvet_for_eval,
    convert_seed_for_submission,
    convert_vizwiz_for_submission,
    convert_vqav2_for_submission,
)
from tests.llava.eval.data_tree import MAKERS, write_answers


@pytest.fixture
def made(tmp_path):
    """The miniature of a benchmark, prepared -> (folder, rows of its question file)."""

    def make(name):
        folder = tmp_path / name
        MAKERS[name][1](folder)
        bench = benchmark(name)
        bench.prepare(folder, bench.split())
        return folder, bench.rows(folder, bench.split())

    return make


def test_gqa(made, tmp_path):
    _, rows = made("gqa")
    answers = write_answers(tmp_path / "a.jsonl", rows, lambda row: "Red.")
    convert_gqa_for_eval.main(["--src", str(answers), "--dst", str(tmp_path / "p" / "predictions.json")])
    predictions = json.loads((tmp_path / "p" / "predictions.json").read_text())
    assert predictions[0] == {"questionId": "20100", "prediction": "red"}
    assert len(predictions) == 5


def test_mmvet(tmp_path):
    answers = write_answers(tmp_path / "a.jsonl", [{"question_id": 3, "text": "?"}], lambda row: "Two\ncats.")
    convert_mmvet_for_eval.main(["--src", str(answers), "--dst", str(tmp_path / "b.json")])
    assert json.loads((tmp_path / "b.json").read_text()) == {"v1_3": "Two\ncats."}


@pytest.mark.parametrize("program", [convert_gqa_for_eval, convert_mmvet_for_eval])
def test_a_bad_line_is_named(tmp_path, program):
    (tmp_path / "a.jsonl").write_text('{"question_id": 3}\n')
    with pytest.raises(SystemExit, match="line 1 has no question_id or no text"):
        program.main(["--src", str(tmp_path / "a.jsonl"), "--dst", str(tmp_path / "b.json")])
    assert not (tmp_path / "b.json").exists()


def test_vqav2(made, capsys):
    folder, rows = made("vqav2")
    split = "llava_vqav2_mscoco_test-dev2015"
    write_answers(folder / "answers" / split / "model/none" / "merge.jsonl", rows[:2], lambda row: "Two dogs!")
    convert_vqav2_for_submission.main(["--dir", str(folder), "--ckpt", "model/none", "--split", split])
    upload = json.loads((folder / "answers_upload" / split / "model/none.json").read_text())
    assert [row["question_id"] for row in upload] == [1000, 1001, 2000, 3000, 3001]
    assert [row["answer"] for row in upload] == ["2 dogs", "2 dogs", "", "", ""]
    assert "5 questions, 2 answered, 0 answers to other questions" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="does not exist"):
        convert_vqav2_for_submission.main(["--dir", str(folder), "--ckpt", "other", "--split", split])


def test_vizwiz(made, tmp_path):
    folder, rows = made("vizwiz")
    answers = write_answers(tmp_path / "a.jsonl", rows[::-1], lambda row: f"The {row['question_id']}")
    flags = ["--annotation-file", str(folder / "llava_test.jsonl"), "--result-file", str(answers)]
    convert_vizwiz_for_submission.main([*flags, "--result-upload-file", str(tmp_path / "up" / "u.json")])
    upload = json.loads((tmp_path / "up" / "u.json").read_text())
    assert upload == [{"image": f"VizWiz_test_{number:08d}.jpg", "answer": str(number)} for number in range(3)]
    write_answers(tmp_path / "a.jsonl", rows[1:], lambda row: "x")
    with pytest.raises(SystemExit, match=r"1 of 3 questions have no answer \(first: 0\)"):
        convert_vizwiz_for_submission.main([*flags, "--result-upload-file", str(tmp_path / "v.json")])


def test_mmbench(made, tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    folder, rows = made("mmbench")
    write_answers(tmp_path / "run.jsonl", rows, lambda row: str(row["question_id"]))
    flags = ["--annotation-file", str(folder / "mmbench_dev_20230712.tsv"), "--result-dir", str(tmp_path)]
    convert_mmbench_for_submission.main([*flags, "--upload-dir", str(tmp_path / "up"), "--experiment", "run"])
    lines = list(openpyxl.load_workbook(tmp_path / "up" / "run.xlsx").active.values)
    assert lines[0][6] == "prediction"
    assert [line[6] for line in lines[1:]] == [str(line[0]) for line in lines[1:]]


def test_seed(made, tmp_path, capsys):
    folder, rows = made("seed")
    answers = write_answers(tmp_path / "a.jsonl", rows[:5], lambda row: "A")
    flags = ["--annotation-file", str(folder / "SEED-Bench.json"), "--result-file", str(answers)]
    convert_seed_for_submission.main([*flags, "--result-upload-file", str(tmp_path / "up" / "u.jsonl")])
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[:5] == [
        "Action Recognition: 100.00%",
        "Instance Identity: 0.00%",
        "Scene Understanding: 50.00%",
        "Total accuracy: 40.00%",
        "image accuracy: 25.00%",
    ]
    assert "1 questions have no answer (first: 101674)" in said.err
    assert json.loads(lines[-1])["missing"] == 1
    assert len((tmp_path / "up" / "u.jsonl").read_text().splitlines()) == 5


def test_mme(made, capsys):
    folder, rows = made("mme")
    write_answers(folder / "answers" / "model" / "run.jsonl", rows, lambda row: "Yes")
    convert_answer_to_mme.main(["--experiment", "model/run", "--dir", str(folder)])
    results = folder / "eval_tool" / "answers" / "model" / "run"
    shown, told = capsys.readouterr().out.splitlines()
    assert shown == json.loads(told)["folder"] == str(results)
    assert json.loads(told)["questions"] == len(rows)
    assert len(list(results.iterdir())) == 14
    assert (results / "artwork.txt").read_text().split("\n")[2] == (
        "11.txt\tIs this artwork 1 one?  Please answer yes or no.\tYes\tYes"
    )
    with pytest.raises(SystemExit, match="does not exist"):
        convert_answer_to_mme.main(["--experiment", "none", "--dir", str(folder)])
