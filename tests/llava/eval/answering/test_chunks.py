"""Which devices and chunks a node has. The launcher's tests run them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from llava.eval import launch
from llava.eval.answering.chunks import Share, answer_chunks, merge, share_of


def test_devices(monkeypatch):
    def devices(*flags):
        return launch.spec_of(["gqa", "--model-path", "x", *flags]).share

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices() == (["0", "1"], [0, 1], 2)
    assert devices("--nodes", "3", "--node", "2") == (["0", "1"], [4, 5], 6)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    assert devices().devices == ["3", "5", "7"]
    assert devices("--devices", "cpu").devices == ["cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices().devices == ["cpu"] * 3
    monkeypatch.setattr(os, "environ", {"SLURM_NNODES": "4", "SLURM_NODEID": "2"})
    spec = launch.spec_of(["gqa", "--model-path", "x"])
    assert (spec.nodes, spec.node) == (4, 2)


def test_a_node_has_its_share(monkeypatch):
    assert share_of("0,1", nodes=3, node=1) == (["0", "1"], [2, 3], 6)
    with pytest.raises(ValueError, match="--node 2 of 2 does not exist; it runs from 0 to 1"):
        share_of("cpu", nodes=2, node=2)


@pytest.mark.parametrize(("status", "done"), [(0, True), (3, False)])
def test_what_answering_programs_say_goes_to_stderr(tmp_path, capfd, status, done):
    command = ["bash", "-c", f'echo "$*"; exit {status}', "program"]
    assert answer_chunks(Share(["cpu"], [1], 2), command, tmp_path) is done
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err == f"--num-chunks 2 --chunk-idx 1 --answers-file {tmp_path / '2_1.jsonl'} --device cpu\n"
    assert (tmp_path / "2_1.done").is_file() is done


def test_chunks_join_in_order_when_all_are_done(tmp_path):
    for number, text in enumerate(("one\n", "", "three\n")):
        assert merge(tmp_path, 3) is None
        (tmp_path / f"3_{number}.jsonl").write_text(text)
        (tmp_path / f"3_{number}.done").touch()
    assert merge(tmp_path, 3).read_text() == "one\nthree\n"


@pytest.mark.parametrize("devices", [",,", "", "banana", "0,,1", "-1", "cuda:0"])
def test_devices_that_name_none(devices):
    with pytest.raises(ValueError, match="names no devices"):
        share_of(devices)


def test_a_chunk_ends_with_its_parent_however_that_ended(tmp_path):
    """The parent is killed, so that it cannot end its children; the watching one does so itself."""
    child = "import time; from llava.eval.answering.chunks import end_with_parent; end_with_parent(); time.sleep(60)"
    parent = (
        "import os, subprocess, sys, time; from llava.eval.answering.chunks import PARENT;"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], env={{**os.environ, PARENT: str(os.getpid())}});"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    started = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    number = int(started.stdout.readline())
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    deadline = time.monotonic() + 60
    while _runs(number) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _runs(number)


def _runs(number):
    try:
        return "State:\tZ" not in Path(f"/proc/{number}/status").read_text()
    except FileNotFoundError:
        return False
