"""Every benchmark from question file to score, on a miniature data root with a tiny model; chunks, nodes, failures.

The answering processes run in this one, so that all of it takes seconds; the shell scripts' own tests start real ones.
"""

import importlib
import json
from pathlib import Path

import pytest

from llava.eval import launch
from llava.eval.benchmarks.registry import benchmark
from llava.model.builder import load_tokenizer, save_llava_checkpoint
from tests.llava.eval.data_tree import make_data_tree
from tests.llava.eval.data_tree_judged import make_judged_tree
from tests.llava.eval.in_this_process import answer_in_this_process
from tests.llava.eval.judge.fake_judge import serving
from tests.llava.eval.models.tiny import write_tiny_checkpoint

OFFLINE = ("gqa", "mmbench", "mmbench_cn", "mme", "pope", "sqa", "textvqa", "seed", "ai2d", "mmmu", "qbench")


@pytest.fixture
def here(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return answer_in_this_process(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data_tree(tmp_path_factory.mktemp("eval"))


@pytest.fixture
def run(llava_folder, data, capsys):
    """Launch a benchmark; returns the JSON document at the end."""

    def launched(name, *more, root=data):
        shared = ["--data", str(root), "--model-path", str(llava_folder), "--devices", "cpu"]
        launch.main(
            [name, *shared, "--pruner", "fastervlm:budget=5", "--batch-size", "3", "--max_new_tokens", "4", *more]
        )
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return launched


@pytest.mark.parametrize("name", OFFLINE)
def test_scored_offline(here, run, name):
    report = run(name)
    assert report["benchmark"] == name
    assert report["missing"] == report["unknown"] == 0
    assert report["n"] > 0
    assert report["main"] is not None
    assert len(here) == 1
    assert here[0][0] == f"llava.eval.{ {'sqa': 'model_vqa_science'}.get(name, here[0][0].rpartition('.')[2]) }"


@pytest.mark.parametrize("name", ["vqav2", "vizwiz"])
def test_val_is_scored_and_test_is_for_the_server(here, run, name):
    report = run(name, "--split", "val")
    assert report["main"] is not None
    assert "val" in " ".join(report["labels"])
    uploaded = run(name)
    assert uploaded["main"] is None
    assert Path(uploaded["upload"]).is_file()


def test_flags_of_single_programs(here, run):
    run("mmbench_cn", "--fresh")
    assert {"--single-pred-prompt", "--lang", "cn"} <= set(here[0])
    run("sqa", "--fresh")
    assert "--single-pred-prompt" in here[1]
    run("gqa", "--fresh", "--max_new_tokens", "3")
    assert here[2].count("--max_new_tokens") == 1, "a flag given replaces the benchmark's own"
    assert here[2][here[2].index("--max_new_tokens") + 1] == "3"


@pytest.mark.parametrize("name", ["gqa", "pope", "mmbench", "sqa"])
def test_chunks_join_to_the_same_answers(here, run, data, llava_folder, name):
    run(name, "--fresh")
    split = benchmark(name).split()
    folder = next(benchmark(name).folder(data, split).rglob("merge.jsonl")).parent

    def said():
        rows = [json.loads(line) for line in (folder / "merge.jsonl").read_text().splitlines()]
        return [(row["question_id"], row["prompt"], row["text"]) for row in rows]

    alone = said()
    run(name, "--devices", "cpu,cpu,cpu")
    assert said() == alone
    assert len({tuple(command[command.index("--chunk-idx") :][:2]) for command in here[1:]}) == 3


def test_several_nodes(here, run, data):
    first = run("gqa", "--nodes", "2", "--node", "1", "--fresh", "--limit", "3")
    assert first == {"benchmark": "gqa", "waiting_for": "other nodes"}
    second = run("gqa", "--nodes", "2", "--node", "0", "--fresh", "--limit", "3")
    assert second["n"] == 3
    assert "subset" in second["labels"]


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "llava_next_hf"])
@pytest.mark.parametrize("name", ["gqa", "mmbench", "sqa"])
def test_models_of_transformers(here, run, tmp_path, family, name):
    """scripts/qwen2_vl, and llava-hf's checkpoints of LLaVA-NeXT by transformers' own class."""
    model = str(write_tiny_checkpoint(tmp_path / family, family))
    report = run(name, "--model-path", model, "--host", "transformers", "--pruner", "random:budget=4")
    assert report["main"] is not None
    assert report["missing"] == 0


@pytest.mark.parametrize("name", ["gqa", "textvqa"])
def test_tiles(here, run, make_tiny_llava, llama_folder, tmp_path, name):
    """scripts/v1_6: a LLaVA-NeXT in LLaVA's layout."""
    model = make_tiny_llava(merge="spatial_unpad")
    model.config.image_aspect_ratio, model.config.image_grid_pinpoints = "anyres", [[56, 112], [112, 56], [112, 112]]
    save_llava_checkpoint(model, load_tokenizer(str(llama_folder)), tmp_path / "next")
    report = run(name, "--model-path", str(tmp_path / "next"), "--pruner", "random:budget=9")
    assert (report["missing"], report["main"] is None) == (0, False)


@pytest.mark.parametrize("name", ["tgif", "msvd", "msrvtt"])
def test_videos(here, run, tmp_path, name):
    pytest.importorskip("av", reason="videos need PyAV: pip install av")
    root = make_judged_tree(tmp_path / "eval", (name,))
    model = str(write_tiny_checkpoint(tmp_path / "video_llava", "video_llava"))
    flags = ("--model-path", model, "--frames", "4", "--pruner", "random:budget=2")
    without = run(name, *flags, root=root)
    assert (without["main"], without["missing"]) == (None, 0)
    with serving(lambda body, number: "{'pred': 'yes', 'score': 4}") as judge:
        judged = run(name, *flags, "--judge-base-url", judge.url, "--judge-model", "fake", root=root)
    assert judged["main"] == pytest.approx(100)


def test_judged(here, run, tmp_path):
    root = make_judged_tree(tmp_path, ("mmvet", "llavabench"))
    without = run("mmvet", root=root)
    assert without["main"] is None
    assert "not judged" in " ".join(without["labels"])
    with serving(lambda body, number: "0.5") as judge:
        judged = run("mmvet", "--judge-base-url", judge.url, "--judge-model", "fake", root=root)
    assert judged["main"] == pytest.approx(50)
    with pytest.raises(SystemExit, match="was given, but no judge"):
        run("mmvet", "--judge-model", "fake", root=root)


def test_a_failed_chunk_is_told_and_mended_by_starting_again(here, run, data, monkeypatch):
    program = importlib.import_module("llava.eval.model_vqa_loader")
    real, calls = program.main, []

    def fails_once(argv):
        calls.append(argv)
        if len(calls) == 1:
            raise SystemExit(1)
        real(argv)

    monkeypatch.setattr(program, "main", fails_once)
    with pytest.raises(SystemExit, match="not every question was answered"):
        run("textvqa", "--limit", "2")
    assert run("textvqa", "--limit", "2")["n"] == 2


def test_errors_come_before_a_model_is_loaded(here, run, data, tmp_path):
    with pytest.raises(SystemExit, match=r"unknown pruner|no pruner"):
        run("gqa", "--pruner", "nonsense:budget=4")
    with pytest.raises(SystemExit, match="lacks"):
        run("gqa", root=tmp_path)
    with pytest.raises(SystemExit, match="--node 3 of 2 does not exist"):
        run("gqa", "--nodes", "2", "--node", "3")
    root = make_data_tree(tmp_path / "holes", ("gqa",))
    next((root / "gqa").rglob("*.jpg")).unlink()
    with pytest.raises(SystemExit, match="1 images of questions are not in"):
        run("gqa", root=root)
    assert not here
    assert run("gqa", "--skip-bad", root=root)["missing"] > 0


def test_a_wrong_flag_ends_the_program_and_is_one_line_for_the_library(capsys):
    wrong = ["gqa", "--model-path", "m", "--limit", "many"]
    with pytest.raises(ValueError, match=r"^argument --limit: invalid int value: 'many'$"):
        launch.spec_of(wrong)
    with pytest.raises(SystemExit) as stopped:
        launch.main(wrong)
    assert stopped.value.code == 2
    assert "usage: " in capsys.readouterr().err
