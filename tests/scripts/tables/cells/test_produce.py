"""Cells of real benchmarks, on miniature data and a tiny model: made, read, continued, made anew."""

import json
import shutil
import statistics
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import pytest
from transformers import CLIPVisionConfig

from flowcut.cost import cost_of
from llava.eval import model_vqa_loader, score
from llava.eval.answering import chunks
from llava.eval.answering.evaluate import question_file_of
from llava.eval.efficiency.answer_costs import flops_of
from llava.eval.efficiency.model_sizes import sizes_in
from llava.model import LlavaConfig
from scripts.tables import benchmark_cell
from scripts.tables.cells import produce
from scripts.tables.cells.document import read_document
from scripts.tables.cells.produce import make_cell, missing_files
from tests.scripts.tables.cells.made_here import FLAGS, PRUNER, at, made_here, nothing_may_run


def recorded(cell):
    lines = cell.evaluation.answers_file.read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_the_value_is_that_of_the_scoring_program(root, capsys):
    cell = at(root)
    made = read_document(cell)
    merged = cell.file.parent / made["answers"]
    score.main(["pope", "--data", str(cell.data), "--answers-file", str(merged)])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert made["value"] == last["main"]
    assert [made[name] for name in ("n", "metric", "split", "parts", "labels", "reported")] == [
        last[name] for name in ("n", "metric", "split", "parts", "labels", "reported")
    ]
    assert (made["missing"], made["n"], made["budget"], made["method"]) == (0, 12, 5, "fastervlm")
    assert json.loads((cell.file.parent / made["scores"]).read_text("utf-8"))["main"] == made["value"]
    assert cell.file == root / "results" / "model" / "pope" / "fastervlm_5.json"
    assert made["identity"]["conv_mode"] == "vicuna_v1"
    for key in ("command", "date", "versions", "hardware", "data_hash"):
        assert made[key]


def test_tokens_flops_and_times_are_means_over_the_answers(root):
    cell = at(root)
    made, answers = read_document(cell), [row["metadata"] for row in recorded(cell)]
    vision = CLIPVisionConfig.from_pretrained(root / "model" / "vision_tower")
    language = LlavaConfig.from_pretrained(root / "model")
    costs = [cost_of(vision, language, one["text_tokens"], one["tokens"][:-1], one["visual_tokens"]) for one in answers]
    assert flops_of(answers, sizes_in(root / "model")) == costs
    for part in ("encoder", "projector", "prefill", "total"):
        by_hand = statistics.fmean(getattr(cost, part) for cost in costs) / 1e9
        assert made["gflops"][part] == pytest.approx(by_hand, abs=1e-4)
        assert by_hand > 1e-5
    assert made["tokens"]["llm"] == 5
    assert made["tokens"]["by_layer"] == [16, 5]
    assert made["ms"]["median"] == pytest.approx(statistics.median(one["ms"] for one in answers), abs=1e-3)
    assert set(made["ms"]) == {"mean", "p25", "median", "p75", "encode", "prefill"}


def test_what_is_there_is_read_and_nothing_runs(root, monkeypatch, capsys):
    cell = at(root)
    files = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in root.rglob("*.json*")}
    monkeypatch.setattr(produce, "evaluate", nothing_may_run)
    monkeypatch.setattr("subprocess.Popen", nothing_may_run)
    monkeypatch.setattr("llava.eval.answering.program.load_answerer", nothing_may_run)
    first = make_cell(cell)
    assert first == read_document(cell)
    flags = ["--benchmark", "pope", "--model", cell.model, "--pruner", PRUNER, "--data", str(cell.data)]
    benchmark_cell.main([*flags, "--out", str(cell.out), *FLAGS])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"file": str(cell.file), **first}
    assert files == {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in root.rglob("*.json*")}


@pytest.mark.slow
def test_a_killed_run_is_continued(root, tmp_path):
    cell = replace(at(root, "gqa", "none", limit=4), out=tmp_path)
    asked = question_file_of(cell.evaluation)
    journal = cell.evaluation.answers_folder / "1_0.jsonl"
    told = ["--question-file", asked.question_file, "--image-folder", asked.images, "--answers-file", journal]
    more = ["--model-path", cell.model, "--pruner", "none", "--temperature", "0", "--conv-mode", "vicuna_v1"]
    model_vqa_loader.main([*map(str, told), *more, "--device", "cpu", "--max_new_tokens", "3"])
    whole = journal.read_bytes()
    kept = b"".join(whole.splitlines(keepends=True)[:2])
    journal.write_bytes(kept + b'{"question_id": "201')
    made = make_cell(cell)
    assert cell.file.name == "none_limit_4.json"
    assert journal.read_bytes().startswith(kept)
    again = [json.loads(line) for line in journal.read_bytes().splitlines()]
    wanted = [json.loads(line) for line in whole.splitlines()]
    assert [(one["question_id"], one["text"]) for one in again] == [(one["question_id"], one["text"]) for one in wanted]
    last = json.loads((cell.evaluation.answers_folder / "merge.scores.json").read_text("utf-8"))
    assert (made["value"], made["n"], made["missing"]) == (last["main"], 4, 0)
    assert "subset" in made["labels"]
    assert made["tokens"]["by_layer"] == [16, 16]
    assert made["budget"] is None
    assert read_document(cell) == made


def test_questions_without_a_picture_are_left_out_of_the_costs(root, tmp_path, capsys):
    made = made_here(replace(at(root, "sqa"), out=tmp_path))
    assert (made["missing"], made["pictured"], made["tokens"]["llm"]) == (0, 3, 5)
    assert made["gflops"]["encoder"] > 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "ScienceQA" in shown.err


def test_missing_data_is_told_before_anything_runs(copied, monkeypatch, capsys):
    monkeypatch.setattr(produce, "evaluate", nothing_may_run)
    copied.file.unlink()
    (copied.evaluation.folder / "val2014" / "COCO_val2014_000000000073.jpg").unlink()
    assert [line for line in missing_files(copied) if "000000000073.jpg" in line]
    assert missing_files(replace(copied, flags=(*FLAGS, "--skip-bad"))) == []
    shutil.rmtree(copied.evaluation.folder / "val2014")
    (copied.evaluation.folder / "coco" / "coco_pope_popular.json").unlink()
    first, second = missing_files(copied)
    assert "coco_pope_popular.json" in first
    assert "val2014" in second
    with pytest.raises(ValueError, match=r"coco_pope_popular\.json.*val2014"):
        make_cell(copied)
    flags = ["--benchmark", "pope", "--model", copied.model, "--data", str(copied.data), "--out", str(copied.out)]
    with pytest.raises(SystemExit, match=r"^error: [^\n]*val2014[^\n]*$"):
        benchmark_cell.main(flags)
    assert capsys.readouterr().out == ""


class Failing(subprocess.Popen):
    """An answering program that says something on both streams, and fails."""

    def __init__(self, command, **more):
        says = "printf 'questions: 50%%\\r' >&2; echo loading; echo 'not answered: question 7' >&2; exit 3"
        super().__init__(["bash", "-c", says], **more)


def test_a_failing_evaluation_is_one_line_and_is_shown(root, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(chunks, "subprocess", SimpleNamespace(Popen=Failing))
    cell = replace(at(root, limit=6), out=tmp_path / "results")
    with pytest.raises(ValueError, match="not every question was answered") as failed:
        make_cell(cell)
    assert "\n" not in str(failed.value)
    assert str(failed.value).endswith(f"; to continue: {cell.command}")
    assert "bash scripts/v1_5/eval/pope.sh --devices cpu" in cell.command
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "questions: 50%\rloading\nnot answered: question 7\n" in shown.err
    assert not cell.file.exists()


def test_waiting_for_other_nodes_makes_no_cell(root, tmp_path, monkeypatch):
    monkeypatch.setattr(produce, "evaluate", lambda *_, **__: None)
    cell = replace(at(root), out=tmp_path)
    with pytest.raises(ValueError, match="other nodes still answer; to continue after them: MODEL="):
        make_cell(cell)
    assert not cell.file.exists()
