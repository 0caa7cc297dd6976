"""The benchmark shell scripts, run for real on a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava.eval import launch
from llava.eval.answering.settings import AnswerSettings
from scripts.embedded.data import write_benchmark
from scripts.embedded.questions import MAKERS

ROOT = Path(__file__).parents[2]


SCRIPTS = sorted(
    file.relative_to(ROOT) for file in ROOT.glob("scripts/*/eval/*.sh") if file.name not in ("common.sh", "embedded.sh")
)
MODELS = {"v1_5": "llava-v1.5-7b", "v1_6": "llava-v1.6-vicuna-7b", "qwen2_vl": "Qwen2-VL-7B-Instruct", "video": "Video"}


def run(script, folder, *flags, **settings):
    """What a script starts: its PYTHON only notes its arguments."""
    note = folder / "python"
    note.write_text('#!/bin/bash\nprintf "%s\\n" "$@" > "$(dirname "$0")/arguments"\n')
    note.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(note), **settings}
    subprocess.run(["bash", str(script), *flags], cwd=ROOT, env=environment, check=True)
    return (folder / "arguments").read_text().splitlines()


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_what_each_script_starts(script, tmp_path):
    arguments = run(script, tmp_path)
    assert arguments[:2] == ["-m", "llava.eval.launch"]
    spec = launch.spec_of(arguments[2:])
    assert spec.benchmark == script.stem.removesuffix("_zh")
    assert spec.pruner is None
    assert MODELS[script.parts[1]] in spec.model
    assert spec.answering == AnswerSettings(conv_mode="vicuna_v1" if script.parts[1].startswith("v1_") else None)
    assert os.access(ROOT / script, os.X_OK)


def test_settings_and_flags(tmp_path):
    settings = {"MODEL": "m", "MODEL_BASE": "b", "PRUNER": "flowcut:budget=64", "LIMIT": "7", "BATCH": "8"}
    arguments = run("scripts/v1_5/eval/vqav2.sh", tmp_path, "--top_p", "1", SPLIT="val", EVAL_ROOT="r", **settings)
    spec = launch.spec_of(arguments[2:])
    assert (spec.model, spec.pruner, spec.limit, spec.split) == ("m", "flowcut:budget=64", 7, "val")
    assert spec.data == Path("r")
    assert spec.answering == AnswerSettings(model_base="b", conv_mode="vicuna_v1", top_p=1.0, batch_size=8)
    arguments = run("scripts/v1_5/eval/gqa.sh", tmp_path, "--limit", "3", "--pruner", "none", **settings)
    late = launch.spec_of(arguments[2:])
    assert (late.limit, late.pruner) == (3, "none")


def test_a_dry_run_says_what_is_missing(tmp_path, capsys):
    arguments = run("scripts/v1_5/eval/pope.sh", tmp_path, DRY="1", EVAL_ROOT=str(tmp_path), MODEL="an/owner")
    with pytest.raises(SystemExit) as stopped:
        launch.main(arguments[2:])
    assert stopped.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1])["missing"] == ["pope"]
    assert "missing downloads: 3, about 6.5 GB and 2 of unknown size" in lines
    assert [line for line in lines if line.startswith("estimate: 8910 questions take about 17 minutes on one GPU")]
    run("scripts/v1_5/eval/embedded.sh", tmp_path, DRY="1", EVAL_ROOT=str(tmp_path))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["arguments", "python"]


@pytest.mark.slow
def test_embedded_script_with_two_devices(llava_folder, tmp_path):
    write_benchmark(tmp_path / "embedded", "test", scenes=2, questions=3, kinds=tuple(MAKERS))
    settings = {
        "MODEL": str(llava_folder),
        "EVAL_ROOT": str(tmp_path),
        "PRUNER": "fastervlm:budget=5",
        "LIMIT": "5",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "PYTHON": sys.executable,
    }
    command = ["bash", "scripts/v1_5/eval/embedded.sh"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["benchmark"], last["n"], last["missing"]) == ("embedded", 5, 1)
    [merged] = tmp_path.rglob("merge.jsonl")
    answered = [json.loads(line)["question_id"] for line in merged.read_text().splitlines()]
    assert answered == ["test-0", "test-1", "test-2", "test-3", "test-4"]
