"""The benchmark shell scripts, run for real on a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.embedded.data import write_benchmark
from scripts.embedded.questions import MAKERS

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_embedded_script_with_two_devices(llava_folder, tmp_path):
    write_benchmark(tmp_path, "test", scenes=2, questions=3, kinds=tuple(MAKERS))
    settings = {
        "MODEL": str(llava_folder),
        "DATA": str(tmp_path),
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

    (tmp_path / "images" / "test_0000.png").write_text("damaged")
    merged.parent.joinpath("2_0.jsonl").unlink()
    failed = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1
    assert "not every question was answered" in failed.stderr
