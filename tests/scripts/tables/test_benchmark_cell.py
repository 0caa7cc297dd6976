"""Cells of real benchmarks, on miniature data and a tiny model: made, read, continued, made anew."""

import contextlib
import importlib
import io
import json
import os
import re
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig

from flowcut.cost import cost_of
from llava.eval import launch, model_vqa_loader, score
from llava.eval.answering import chunks
from llava.eval.efficiency.answer_costs import flops_of
from llava.eval.efficiency.model_sizes import sizes_in
from llava.model import LlavaConfig
from scripts.tables import benchmark_cell
from scripts.tables.benchmark_cell import BenchmarkCell
from scripts.tables.follow import Ended, follow
from tests.llava.eval.data_tree import make_data_tree

FLAGS = ("--devices", "cpu", "--max_new_tokens", "3")
PRUNER = "fastervlm:budget=5"


class InThisProcess:
    """In place of Popen: an answering program without a new interpreter."""

    def __init__(self, command, env):
        importlib.import_module(command[2]).main(command[3:])

    def wait(self):
        return 0


def answered_here(command, environment):
    """In place of `follow`: what the script's one line starts, without new interpreters."""
    name = Path(command[1]).stem
    told = ["--data", environment["EVAL_ROOT"], "--model-path", environment["MODEL"], "--conv-mode", "vicuna_v1"]
    told += ["--pruner", environment["PRUNER"], *(["--limit", environment["LIMIT"]] if environment["LIMIT"] else [])]
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(chunks, "subprocess", SimpleNamespace(Popen=InThisProcess))
        launch.main([name, *told, *command[2:]])
    return Ended(0, said.getvalue().splitlines())


def nothing_may_run(*_):
    raise AssertionError("the script was started")


def made_here(cell):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark_cell, "follow", answered_here)
        return cell.make()


def at(root, name="pope", pruner=PRUNER, **more):
    return BenchmarkCell(
        "v1_5", name, str(root / "model"), pruner, root / "results", data=root / "eval", flags=FLAGS, **more
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory, llava_folder):
    """A folder with model, data, and the cell of POPE."""
    folder = tmp_path_factory.mktemp("cells")
    shutil.copytree(llava_folder, folder / "model")
    make_data_tree(folder / "eval", ("pope", "gqa", "sqa"))
    made_here(at(folder))
    return folder


@pytest.fixture
def copied(root, tmp_path):
    """The cell of POPE in a folder of the test's own."""
    shutil.copytree(root, tmp_path / "own")
    cell = at(tmp_path / "own")
    assert cell.read() is not None
    return cell


def recorded(cell):
    lines = (cell.answers_folder / "merge.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_the_value_is_that_of_the_scoring_program(root, capsys):
    cell = at(root)
    made = cell.read()
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
    made, answers = cell.read(), [row["metadata"] for row in recorded(cell)]
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
    monkeypatch.setattr(benchmark_cell, "follow", nothing_may_run)
    monkeypatch.setattr("subprocess.Popen", nothing_may_run)
    monkeypatch.setattr("llava.eval.models.load.load_answerer", nothing_may_run)
    first = cell.make()
    assert first == cell.read()
    flags = ["--benchmark", "pope", "--model", cell.model, "--pruner", PRUNER, "--data", str(cell.data)]
    benchmark_cell.main([*flags, "--out", str(cell.out), *FLAGS])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"file": str(cell.file), **first}
    assert files == {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in root.rglob("*.json*")}


def change_question(cell):
    text = cell.question_file.read_text("utf-8")
    cell.question_file.write_text(text.replace("kite", "boat", 1), "utf-8")


def change_label(cell):
    file = cell.folder / "coco" / "coco_pope_random.json"
    file.write_text(file.read_text("utf-8").replace('"yes"', '"no"', 1), "utf-8")


def change_weights(cell):
    [file] = Path(cell.model).glob("model*.safetensors")
    save_file({name: value + 1 for name, value in load_file(file).items()}, file, {"format": "pt"})


@pytest.mark.parametrize("change", [change_question, change_label, change_weights])
def test_stale_after_a_change(copied, change):
    change(copied)
    assert copied.read() is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pruner", "FasterVLM(budget=6)"),
        ("split", "other"),
        ("limit", 3),
        ("model", "other"),
        ("model_hash", "0" * 16),
        ("data_hash", "0" * 16),
        ("temperature", 0.2),
        ("max_new_tokens", 128),
    ],
)
def test_stale_when_its_identity_is_another(copied, name, value):
    document = json.loads(copied.file.read_text("utf-8"))
    assert document["identity"][name] != value
    document["identity"][name] = value
    copied.file.write_text(json.dumps(document), "utf-8")
    assert copied.read() is None


def test_stale_while_a_question_is_unanswered_or_a_flag_is_another(copied):
    for flags in (("--temperature", "0.2"), ("--conv-mode", "llava_v1"), ("--dtype", "float16"), ("--seed", "1")):
        assert replace(copied, flags=(*FLAGS, *flags)).read() is None
    assert replace(copied, flags=(*FLAGS, "--batch-size", "4", "--workers", "1")).read() is not None
    document = json.loads(copied.file.read_text("utf-8"))
    copied.file.write_text(json.dumps(document | {"missing": 1}), "utf-8")
    assert copied.read() is None


def test_a_cell_from_elsewhere_is_believed_where_nothing_contradicts_it(copied):
    shutil.rmtree(copied.data)
    shutil.rmtree(copied.model)
    assert copied.read()["n"] == 12


def test_a_label_is_scored_anew_and_not_answered(copied):
    change_label(copied)
    before = (copied.answers_folder / "1_0.jsonl").read_bytes()
    old = json.loads(copied.file.read_text("utf-8"))
    made = made_here(copied)
    assert (copied.answers_folder / "1_0.jsonl").read_bytes() == before
    assert made["parts"] != old["parts"]
    assert copied.read() == made


def test_answers_of_other_weights_are_put_aside(copied, monkeypatch, caplog):
    before = (copied.answers_folder / "merge.jsonl").read_bytes()
    old = copied.file.read_bytes()
    change_weights(copied)
    monkeypatch.setattr(benchmark_cell, "follow", lambda *_: Ended(1, ["a bar", "error: no space left", "the end"]))
    with pytest.raises(ValueError, match=r"ended with 1: no space left; started again") as failed:
        copied.make()
    assert "\n" not in str(failed.value)
    aside = copied.answers_folder.with_name(copied.answers_folder.name + ".1")
    assert (aside / "merge.jsonl").read_bytes() == before
    assert copied.file.read_bytes() == old  # until there is a new one
    assert "put aside" in caplog.text
    made = made_here(copied)
    assert made["identity"]["model_hash"] != json.loads(old)["identity"]["model_hash"]
    assert copied.read() == made


@pytest.mark.slow
def test_a_killed_run_is_continued_by_the_script(root, tmp_path):
    cell = replace(at(root, "gqa", "none", limit=4), out=tmp_path)
    asked = cell.bench.prepare(cell.folder, cell.split, 4)
    journal = cell.answers_folder / "1_0.jsonl"
    told = ["--question-file", asked.question_file, "--image-folder", asked.images, "--answers-file", journal]
    more = ["--model-path", cell.model, "--pruner", "none", "--temperature", "0", "--conv-mode", "vicuna_v1"]
    model_vqa_loader.main([*map(str, told), *more, "--device", "cpu", "--max_new_tokens", "3"])
    whole = journal.read_bytes()
    kept = b"".join(whole.splitlines(keepends=True)[:2])
    journal.write_bytes(kept + b'{"question_id": "201')
    made = cell.make()
    assert cell.file.name == "none_limit_4.json"
    assert journal.read_bytes().startswith(kept)
    again = [json.loads(line) for line in journal.read_bytes().splitlines()]
    wanted = [json.loads(line) for line in whole.splitlines()]
    assert [(one["question_id"], one["text"]) for one in again] == [(one["question_id"], one["text"]) for one in wanted]
    last = json.loads((cell.answers_folder / "merge.scores.json").read_text("utf-8"))
    assert (made["value"], made["n"], made["missing"]) == (last["main"], 4, 0)
    assert "subset" in made["labels"]
    assert made["tokens"]["by_layer"] == [16, 16]
    assert made["budget"] is None
    assert cell.read() == made


def test_questions_without_a_picture_are_left_out_of_the_costs(root, tmp_path):
    made = made_here(replace(at(root, "sqa"), out=tmp_path))
    assert (made["missing"], made["pictured"], made["tokens"]["llm"]) == (0, 3, 5)
    assert made["gflops"]["encoder"] > 0


def test_missing_data_is_told_before_anything_runs(copied, monkeypatch, capsys):
    monkeypatch.setattr(benchmark_cell, "follow", nothing_may_run)
    copied.file.unlink()
    (copied.folder / "val2014" / "COCO_val2014_000000000073.jpg").unlink()
    assert [line for line in copied.missing_files() if "000000000073.jpg" in line]
    assert replace(copied, flags=(*FLAGS, "--skip-bad")).missing_files() == []
    shutil.rmtree(copied.folder / "val2014")
    (copied.folder / "coco" / "coco_pope_popular.json").unlink()
    first, second = copied.missing_files()
    assert "coco_pope_popular.json" in first
    assert "val2014" in second
    with pytest.raises(ValueError, match=r"coco_pope_popular\.json.*val2014"):
        copied.make()
    flags = ["--benchmark", "pope", "--model", copied.model, "--data", str(copied.data), "--out", str(copied.out)]
    with pytest.raises(SystemExit, match=r"^error: [^\n]*val2014[^\n]*$"):
        benchmark_cell.main(flags)
    assert capsys.readouterr().out == ""


SCRIPT = """printf 'questions: 50%%\\r' >&2
echo "$MODEL|$PRUNER|$LIMIT|${MODEL_BASE-unset}|${SPLIT-unset}|$HOME|$*"
echo 'not answered: question 7: picture is damaged' >&2
echo 'error: not every question was answered' >&2
exit 3
"""


def test_a_failing_script_is_one_line_and_is_shown(root, tmp_path, monkeypatch, capfd):
    scripts = tmp_path / "scripts"
    (scripts / "v1_5" / "eval").mkdir(parents=True)
    (scripts / "v1_5" / "eval" / "pope.sh").write_text(SCRIPT)
    monkeypatch.setattr(benchmark_cell, "SCRIPTS", scripts)
    monkeypatch.setenv("MODEL_BASE", "from the caller's shell")
    monkeypatch.setenv("SPLIT", "from the caller's shell")
    cell = replace(at(root, limit=6), out=tmp_path / "results")
    with pytest.raises(ValueError, match="ended with 3: not answered: question 7: picture is damaged") as failed:
        cell.make()
    assert "\n" not in str(failed.value)
    assert "bash scripts/v1_5/eval/pope.sh --devices cpu" in str(failed.value)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "questions: 50%\r" in shown.err
    told = f"{cell.model}|{PRUNER}|6|unset|unset|{os.environ['HOME']}|{' '.join(FLAGS)}"
    assert told in shown.err
    assert not cell.file.exists()


def test_waiting_for_other_nodes_makes_no_cell(root, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_cell, "follow", lambda *_: Ended(0, ['{"waiting_for": "other nodes"}']))
    cell = replace(at(root), out=tmp_path)
    with pytest.raises(ValueError, match="other nodes still answer"):
        cell.make()
    assert not cell.file.exists()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            ["50%", "Traceback (most recent call last):", "torch.OutOfMemoryError: CUDA", "error: start again"],
            "torch.*",
        ),
        (["error: no such model", "more"], "no such model$"),
        (["killed"], "killed"),
        ([], "it said nothing"),
    ],
)
def test_the_reason_is_what_helps_most(said, reason):
    assert re.match(reason, Ended(1, said).reason)


def test_following_keeps_characters_whole(capfd):
    ended = follow(
        ["bash", "-c", 'printf "%05000d\\rwi\\303"; sleep 0.1; printf "\\251 \\303"; echo; echo "{\\"n\\": 1}"'], {}
    )
    assert ended.status == 0
    assert ended.document == {"n": 1}
    assert "wié \ufffd" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"benchmark": "gqq"}, "no benchmark 'gqq'"),
        ({"family": "v1_6", "benchmark": "vizwiz"}, "v1_6 has no script for vizwiz; give one of v1_5"),
        ({"pruner": "flowcat:budget=3"}, "unknown pruner"),
        ({"limit": 0}, "limit=0"),
        ({"flags": ("--limit", "3")}, "give them to the cell"),
        ({"flags": ("--pruner", "none")}, "give them to the cell"),
        ({"flags": ("--split", "nope")}, "no split 'nope'"),
        ({"flags": ("--seed", "one")}, "invalid int value"),
        ({"flags": ("--node", "4")}, "--node 4 of 1"),
    ],
)
def test_what_cannot_be_is_one_line(root, more, message):
    given = {"family": "v1_5", "benchmark": "pope", "model": "m", "pruner": PRUNER, "out": root} | more
    with pytest.raises(ValueError, match=message) as refused:
        BenchmarkCell(**given)
    assert "\n" not in str(refused.value)


def test_another_split_has_a_file_of_its_own(root):
    cell = BenchmarkCell("v1_5", "vqav2", "org/model-7b", "none", root)
    assert cell.file == root / "model-7b" / "vqav2" / "none.json"
    assert replace(cell, flags=("--split", "val")).file.name == "none_val.json"
    assert replace(cell, flags=("--split", "val"), limit=9).file.name == "none_val_limit_9.json"
    assert replace(cell, flags=("--split", "test-dev")).file.name == "none.json"
