"""LLaVA's scoring programs under their old names and flags give the numbers of `llava.eval.score`."""

import json

import pytest

from llava.eval import eval_mme, eval_pope, eval_science_qa, eval_textvqa
from llava.eval.benchmarks.registry import benchmark
from llava.eval.m4c_evaluator import EvalAIAnswerProcessor, TextVQAAccuracyEvaluator
from tests.llava.eval.data_tree import MAKERS, write_answers


@pytest.fixture
def answered(tmp_path):
    """The miniature of a benchmark with answers -> (folder, question file, answers file)."""

    def make(name, reply):
        folder = tmp_path / name
        MAKERS[name][1](folder)
        bench = benchmark(name)
        prepared = bench.prepare(folder, bench.split())
        rows = bench.rows(folder, bench.split())
        return folder, prepared.question_file, write_answers(tmp_path / "answers.jsonl", rows, reply)

    return make


def test_eval_pope(answered, capsys):
    folder, questions, answers = answered("pope", lambda row: "Yes" if row["category"] == "popular" else "No")
    flags = ["--annotation-dir", str(folder / "coco"), "--question-file", str(questions)]
    eval_pope.main([*flags, "--result-file", str(answers)])
    lines = capsys.readouterr().out.splitlines()
    place = lines.index("Category: popular, # samples: 4")
    assert lines[place + 1 : place + 6] == [
        "TP\tFP\tTN\tFN\t",
        "2\t2\t0\t0",
        "Accuracy: 0.5",
        "Precision: 0.5",
        "Recall: 1.0",
    ]
    assert "Precision: -" in lines
    assert lines[place + 8 : place + 10] == ["0.667, 0.500, 0.500, 1.000, 1.000", "=" * 36]  # as LLaVA ends a category
    last = json.loads(lines[-1])
    assert last["main"] == pytest.approx(66.6667 / 3, abs=1e-3)
    with pytest.raises(SystemExit, match="does not exist"):
        eval_pope.main([*flags, "--result-file", str(folder / "none.jsonl")])


def test_eval_textvqa(answered, tmp_path, capsys):
    folder, _, answers = answered("textvqa", lambda row: "1999" if row["question_id"] == 34603 else "no")
    annotation = str(folder / "TextVQA_0.5.1_val.json")
    (tmp_path / "notes.txt").write_text("no answers")
    eval_textvqa.main(["--annotation-file", annotation, "--result-file", str(answers), "--result-dir", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["answers", "Samples: 4", "Accuracy: 25.00%"]
    assert lines.count("Accuracy: 25.00%") == 2  # as a file, and in the folder
    assert json.loads(lines[-1])["results"]["answers"] == {"accuracy": 25.0, "n": 4, "missing": 0}
    with answers.open("a") as file:
        file.write('{"question_id": 1, "prompt": "?", "text": "x"}\n')
    with pytest.raises(SystemExit, match=r"1 answers of .* belong to no question"):
        eval_textvqa.main(["--annotation-file", annotation, "--result-file", str(answers)])
    with pytest.raises(SystemExit):
        eval_textvqa.main(["--annotation-file", annotation])


def test_eval_science_qa(answered, tmp_path, capsys):
    """Truths A, B, A, B, A; pictures in 901, 902, 904; 904 not answered, so wrong, and not known to have a picture."""
    replies = {"901": "A", "902": "C. blue", "903": "The answer is A.", "904": None, "905": "maybe"}
    folder, _, answers = answered("sqa", lambda row: replies[row["id"]])
    output, result = tmp_path / "out" / "output.json", tmp_path / "out" / "result.json"
    flags = ["--base-dir", str(folder), "--result-file", str(answers), "--output-file", str(output)]
    eval_science_qa.main([*flags, "--output-result", str(result), "--split", "test", "--options", "ABCDE"])
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == "Total: 5, Correct: 2, Accuracy: 40.00%, IMG-Accuracy: 50.00%"
    assert "1 questions have no answer and count as wrong" in said.err
    assert json.loads(lines[-1])["img_accuracy"] == 50.0
    kept = json.loads(result.read_text())
    assert (kept["acc"], kept["correct"], kept["count"]) == (40.0, 2, 5)
    assert kept["results"] == {"901": 0, "902": 2, "903": 0, "904": -1, "905": -1}
    assert kept["outputs"]["904"] == "FAILED"
    entries = json.loads(output.read_text())
    assert [entry["question_id"] for entry in entries["correct"]] == ["901", "903"]
    assert entries["incorrect"][0] == {
        "question_id": "902",
        "parsed_ans": "C",
        "ground_truth": "B",
        "question": "<image>\nWhich color is number 1?\nA. red\nB. green\nC. blue",
        "pred": "C. blue",
        "is_multimodal": True,
    }
    with pytest.raises(SystemExit, match="has no split 'minitest'"):
        eval_science_qa.main([*flags, "--output-result", str(result), "--split", "minitest"])


def test_eval_mme(answered, tmp_path, capsys):
    folder, _, answers = answered("mme", lambda row: "Yes")
    bench = benchmark("mme")
    joined = bench.read(folder, answers, bench.split())
    results = bench.export(folder, bench.split(), joined.samples, tmp_path / "answers")
    (results / "OCR.txt").unlink()
    eval_mme.main(["--results_dir", str(results)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "perception total score: -"
    assert "\t OCR score: -" in lines
    assert "cognition total score: 200.00" in lines
    assert json.loads(lines[-1])["main"] is None
    with pytest.raises(SystemExit, match="has no <task>"):
        eval_mme.main(["--results_dir", str(tmp_path)])


def test_m4c_evaluator():
    assert EvalAIAnswerProcessor()("The T-shirt.") == "t shirt"
    evaluator = TextVQAAccuracyEvaluator()
    entries = [
        {"pred_answer": "yes", "gt_answers": ["yes"] * 2 + ["no"] * 8},
        {"pred_answer": "no", "gt_answers": ["yes"] * 2 + ["no"] * 8},
    ]
    assert evaluator.eval_pred_list(entries) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="no answers to score"):
        evaluator.eval_pred_list([])
