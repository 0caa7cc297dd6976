"""The program that scores answers: table, files, labels, what does not fit."""

import csv
import json
import shutil

import pytest

from llava.eval import score
from llava.eval.benchmarks.registry import benchmark
from tests.llava.eval.data_tree import MAKERS, make_data_tree, write_answers


@pytest.fixture
def data(tmp_path):
    return make_data_tree(tmp_path / "eval")


@pytest.fixture
def run(data, tmp_path, capsys):
    """Scores answers by the program -> (its last line, its text, what it said on stderr)."""

    def scored(name, reply, *flags, split=None):
        bench = benchmark(name)
        own = bench.split(split)
        rows = bench.rows(bench.folder(data, own), own)
        file = write_answers(tmp_path / "answers.jsonl", rows, reply)
        flags = [*flags, *(["--split", split] if split else [])]
        score.main([name, "--data", str(data), "--answers-file", str(file), *flags])
        said = capsys.readouterr()
        return json.loads(said.out.splitlines()[-1]), said.out, said.err

    return scored


@pytest.mark.parametrize("name", MAKERS)
def test_every_benchmark_is_scored(run, tmp_path, name):
    last, _, errors = run(name, lambda row: "A")
    assert not errors
    assert last["benchmark"] == name
    assert last["missing"] == last["unknown"] == last["repeated"] == 0
    assert json.loads((tmp_path / "answers.scores.json").read_text()) == last
    with (tmp_path / "answers.scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(row["text"] == "A" for row in rows)
    assert {row["value"] == "" for row in rows} == {last["main"] is None}
    assert any("published" in label for label in last["labels"])  # the miniature is not the published set


def test_the_table_and_the_last_line(run):
    last, text, _ = run("gqa", lambda row: "red")
    assert text.splitlines()[0] == "GQA, testdev_balanced: accuracy 20.00 (5 questions, published 12578)"
    assert "5 scored, 0 missing" in text
    assert (last["main"], last["n"], last["paper"]) == (20.0, 5, 61.9)


def test_without_answers_a_dash_and_never_zero(run):
    last, text, errors = run("pope", lambda row: None)
    assert last["main"] is None
    assert "mean F1 -" in text
    assert last["missing"] == 12
    assert "12 questions have no answer (first: 1, 2, 3)" in errors
    assert last["labels"][0] == "incomplete: 12 of 12 unanswered"


def test_a_subset_is_labelled_and_not_warned_about(run):
    last, text, errors = run("gqa", lambda row: "no" if row["question_id"] == "20102" else None, "--subset")
    assert (last["main"], last["n"], last["missing"]) == (100.0, 1, 4)
    assert last["labels"][0] == "subset"
    assert "(subset; " in text
    assert not errors


@pytest.mark.parametrize(("name", "split"), [("vqav2", "val"), ("vizwiz", "val")])
def test_a_proxy_split_is_labelled(run, name, split):
    last, text, _ = run(name, lambda row: "yes", split=split)
    assert last["labels"][0] == "val"
    assert "(val; " in text.splitlines()[0]
    assert last["main"] is not None


@pytest.mark.parametrize("name", ["vqav2", "vizwiz"])
def test_test_splits_have_an_upload_file_instead(run, tmp_path, name):
    last, _, _ = run(name, lambda row: "A Cup.")
    assert "no public answers: upload the file" in last["labels"]
    assert (last["main"], last["n"]) == (None, 0)
    assert last["upload"] == str(tmp_path / "answers.upload.json")
    assert json.loads((tmp_path / "answers.upload.json").read_text())[0]["answer"] == "cup"


def test_an_upload_that_cannot_be_made_is_told(run):
    last, _, errors = run("vizwiz", lambda row: None if row["question_id"] else "cup")
    assert last["upload"] is None
    assert "no upload file: 2 of 3 questions have no answer" in errors


def test_what_does_not_fit_is_told(data, tmp_path, capsys):
    file = tmp_path / "a.jsonl"
    line = '{"question_id": "20100", "prompt": "?", "text": "red"}\n'
    file.write_text(line + line + '{"question_id": "999", "prompt": "?", "text": "red"}\n')
    score.main(["gqa", "--data", str(data), "--answers-file", str(file)])
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1])["unknown"] == 1
    assert "1 answers belong to no question (first: 999)" in said.err
    assert "1 answers stand in the file more than once" in said.err


def test_scoring_needs_no_pictures(data, run):
    shutil.rmtree(data / "pope" / "val2014")
    assert run("pope", lambda row: "Yes")[0]["main"] == pytest.approx(66.6667)


def test_errors_are_one_line(data, tmp_path):
    def message(*command):
        with pytest.raises(SystemExit) as stop:
            score.main([*command, "--data", str(data)])
        return str(stop.value)

    assert "answers file" in message("gqa", "--answers-file", str(tmp_path / "none.jsonl"))
    (tmp_path / "a.jsonl").write_text(
        '{"question_id": "20100", "text": "red"}\n{"question_id": "20100", "text": "no"}\n'
    )
    assert "has two answers" in message("gqa", "--answers-file", str(tmp_path / "a.jsonl"))
    (data / "gqa" / "data" / "testdev_balanced_questions.json").unlink()
    lacking = message("gqa", "--answers-file", str(tmp_path / "a.jsonl"))
    assert "lacks data/testdev_balanced_questions.json; `python -m llava.eval.prepare gqa --check`" in lacking
    assert "\n" not in lacking
