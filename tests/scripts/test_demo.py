"""The main job on a tiny model: cells, resuming, staleness, the table and the last line."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava.model.builder import load_tokenizer, save_llava_checkpoint
from scripts import demo
from scripts.embedded.data import write_benchmark
from scripts.embedded.questions import MAKERS
from scripts.tables import cell
from scripts.tables.cells.in_process import Cell
from tests.conftest import build_tiny_llava


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    write_benchmark(folder, "test", scenes=3, questions=3, kinds=tuple(MAKERS))
    return folder


@pytest.fixture(scope="module")
def deep_folder(llama_folder, clip_folder, tmp_path_factory) -> Path:
    """The tiny LLaVA with an encoder of five layers, so that FlowCut has room to cut twice."""
    tower = shutil.copytree(clip_folder, tmp_path_factory.mktemp("deep") / "clip")
    fields = CLIPVisionConfig.from_pretrained(clip_folder).to_dict() | {"num_hidden_layers": 5}
    CLIPVisionModel(CLIPVisionConfig.from_dict(fields)).save_pretrained(tower)
    folder = tower.parent / "llava"
    save_llava_checkpoint(build_tiny_llava(llama_folder, tower), load_tokenizer(str(llama_folder)), folder)
    return folder


@pytest.fixture
def few_rows(monkeypatch):
    """Budgets that fit the tiny model's 16 patches."""
    monkeypatch.setattr(demo, "BUDGETS", (8, 3))


def flags(llava_folder, data, out, *more: str) -> list[str]:
    return ["--model", str(llava_folder), "--data", str(data), "--out", str(out), "--device", "cpu", *more]


def test_the_demo_from_data_to_last_line(deep_folder, data, tmp_path, few_rows, capsys):
    demo.main(flags(deep_folder, data, tmp_path, "--limit", "4"))
    lines = capsys.readouterr().out.splitlines()
    last = json.loads(lines[-1])
    assert list(last) == ["benchmark", "n", "blind", "rows"]
    assert (last["benchmark"], last["n"]) == ("embedded", 4)
    assert [(row["pruner"], row["budget"]) for row in last["rows"]] == [
        ("none", 16),
        *[(method, budget) for budget in (8, 3) for method in ("random", "fastervlm", "flowcut")],
    ]
    for row in last["rows"]:
        assert list(row) == ["pruner", "budget", "accuracy", "gflops", "ms"]
        assert row["ms"] > 0
    flops = {(row["pruner"], row["budget"]): row["gflops"] for row in last["rows"]}
    assert flops["none", 16] > flops["fastervlm", 8] > flops["fastervlm", 3] > 0
    assert flops["fastervlm", 3] == flops["random", 3] > flops["flowcut", 3]
    assert len({len(line) for line in lines[:10]}) == 1, "columns are aligned"
    folder = tmp_path / "embedded"
    assert len(list(folder.glob("*.json"))) == 8
    with Image.open(folder / "kept.png") as kept:
        assert kept.width == 4 * 336


def test_a_second_run_measures_nothing_again(deep_folder, data, tmp_path, few_rows, capsys):
    demo.main(flags(deep_folder, data, tmp_path, "--limit", "3"))
    first = capsys.readouterr().out.splitlines()[-1]
    files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.json*")}
    demo.main(flags(deep_folder, data, tmp_path, "--limit", "3"))
    assert capsys.readouterr().out.splitlines()[-1] == first
    assert files == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.json*")}


def run_cell(llava_folder, data, out, *more: str) -> dict:
    cell.main([*flags(llava_folder, data, out), "--pruner", "fastervlm:budget=5", *more])
    return json.loads((out / "embedded" / "fastervlm_5.json").read_text())


def test_a_cell_knows_where_it_came_from(llava_folder, data, tmp_path):
    made = run_cell(llava_folder, data, tmp_path, "--limit", "5")
    assert made["tokens"]["llm"] == 5
    assert made["tokens"]["by_layer"] == [16, 5]
    assert (made["tokens"]["encoder_inputs"], made["tokens"]["encoder_outputs"]) == (16, 5)
    assert made["gflops"]["total"] == pytest.approx(
        sum(made["gflops"][part] for part in ("encoder", "projector", "prefill")), abs=2e-4
    )
    assert (made["n"], made["missing"], made["limit"], made["budget"]) == (5, 0, 5, 5)
    assert made["command"].startswith("python -m scripts.tables.cell --model")
    answers = (tmp_path / "embedded" / made["answers"]).read_text().splitlines()
    assert len(answers) == 5
    truth = {row["question_id"]: row for row in map(json.loads, (data / "answers.jsonl").read_text().splitlines())}
    right = [truth[row["question_id"]]["answer"] == row["text"] for row in map(json.loads, answers)]
    assert made["accuracy"] == sum(right) / 5


def test_an_interrupted_cell_goes_on_and_a_stale_one_starts_over(llava_folder, data, tmp_path):
    made = run_cell(llava_folder, data, tmp_path)
    file, answers = tmp_path / "embedded" / "fastervlm_5.json", tmp_path / "embedded" / made["answers"]
    whole = answers.read_text().splitlines()
    file.unlink()
    answers.write_text("\n".join(whole[:4]) + "\n" + whole[4][:20])
    again = run_cell(llava_folder, data, tmp_path)
    assert answers.read_text().splitlines()[:4] == whole[:4]
    assert (again["n"], again["accuracy"]) == (made["n"], made["accuracy"])

    limited = run_cell(llava_folder, data, tmp_path, "--limit", "2")
    assert (limited["n"], len(answers.read_text().splitlines())) == (9, 9)  # a cell of more questions serves for fewer
    other = shutil.copytree(data, tmp_path / "other")
    picture = other / "images" / "test_0000.png"
    picture.write_bytes((other / "images" / "test_0001.png").read_bytes())
    changed = run_cell(llava_folder, other, tmp_path, "--limit", "2")
    assert changed["identity"]["data_hash"] != limited["identity"]["data_hash"]
    assert (changed["n"], len(answers.read_text().splitlines())) == (2, 2)


def test_a_missing_picture_is_told_and_counted(llava_folder, data, tmp_path, capsys):
    broken = shutil.copytree(data, tmp_path / "broken")
    (broken / "images" / "test_0001.png").unlink()
    with pytest.raises(SystemExit) as end:
        run_cell(llava_folder, broken, tmp_path)
    assert end.value.code == 1
    assert "test_0001.png does not exist" in capsys.readouterr().err
    made = json.loads((tmp_path / "embedded" / "fastervlm_5.json").read_text())
    assert (made["n"], made["missing"]) == (6, 3)
    shutil.copy(data / "images" / "test_0001.png", broken / "images")
    assert run_cell(llava_folder, broken, tmp_path)["missing"] == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--pruner", "flowcat:budget=5"], "unknown pruner"),
        (["--pruner", "flowcut:budget=0"], "budget=0"),
        (["--model", "/nowhere/model"], "/nowhere/model is not a folder"),
        (["--data", "/nowhere/data"], "question file /nowhere/data/questions.jsonl does not exist"),
    ],
)
def test_bad_input_is_one_line(llava_folder, data, tmp_path, more, said):
    with pytest.raises(SystemExit) as end:
        cell.main(flags(llava_folder, data, tmp_path, *more))
    message = str(end.value)
    assert message.startswith("error: ")
    assert said in message
    assert "\n" not in message


def test_names_of_cells():
    names = [
        Cell("embedded", blind=True),
        Cell("embedded"),
        Cell("embedded", "flowcut:budget=64"),
        Cell("embedded", "flowcut:budget=64,interval=4"),
    ]
    assert [one.name for one in names] == ["blind", "none", "flowcut_64", "flowcut_64_interval=4"]
