"""Two processes on a CPU, started as users start them: DeepSpeed's ZeRO 2 and 3, and torchrun alone.

The second process has text alone in every batch: did it leave out tower or projector, the first would wait for ever.
What they learn is compared with one process that accumulates the gradients of both samples.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava.model.builder import load_pretrained_model
from llava.train.train import train

pytest.importorskip("deepspeed")
ROOT = Path(__file__).parents[3]
STEPS = 10
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alternating(data_folder):
    """Samples with a picture at the even places, without at the odd ones, which fall to the second process."""
    samples = json.loads((data_folder / "dialogues.json").read_text())
    pictures = [sample for sample in samples if "image" in sample]
    texts = [sample for sample in samples if "image" not in sample]
    file = data_folder / "alternating.json"
    file.write_text(json.dumps([sample for pair in zip(pictures, texts, strict=False) for sample in pair]))
    return file


@pytest.fixture(scope="module")
def zero_3(tmp_path_factory):
    """The recipe's ZeRO-3, with small weights cut up too."""
    config = json.loads((ROOT / "scripts/zero3.json").read_text())
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    file = tmp_path_factory.mktemp("deepspeed") / "zero3.json"
    file.write_text(json.dumps(config))
    return file


@pytest.fixture(scope="module")
def training(flags, alternating):
    """The flags of a run."""

    def make(output: Path, *more: object) -> list[str]:
        shared = ("--version", "v1", "--data_path", alternating, "--per_device_train_batch_size", 1)
        shared += ("--train_sampling_strategy", "sequential", "--max_steps", STEPS, "--save_steps", 4)
        return flags(output, *shared, *more)

    return make


@pytest.fixture(scope="module")
def command(training, zero_3):
    """The command line of a run of two processes; `stage` is a ZeRO stage, or None for torchrun without DeepSpeed."""

    def make(stage: int | None, output: Path, *more: object) -> list[str]:
        program = [str(ROOT / "llava/train/train.py"), *training(output, *more)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        if stage is None:
            launcher = ["torch.distributed.run", f"--master_port={port}", "--nproc_per_node=2"]
            return [sys.executable, "-m", *launcher, *program]
        launcher = ["deepspeed.launcher.runner", f"--master_port={port}", "--num_accelerators=2"]
        config = {2: ROOT / "scripts/zero2.json", 3: zero_3}[stage]
        program.insert(0, str(ROOT / "tests/without_operators.py"))
        return [sys.executable, "-m", *launcher, *program, "--deepspeed", str(config)]

    return make


def environment() -> dict[str, str]:
    beside = str(Path(sys.executable).parent)  # where deepspeed's requirements have put ninja
    path = {"PATH": os.pathsep.join([beside, os.environ["PATH"]]), "PYTHONPATH": str(ROOT)}
    return {**os.environ, **path, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def launch(command: list[str]) -> str:
    """Run to the end; what it printed."""
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def launch_and_kill(command: list[str], output: Path) -> str:
    """Kill launcher and workers, as `kill -9` does, as soon as the first checkpoint is there; what they printed."""
    log = output / "printed.txt"
    with log.open("wb") as file:
        run = subprocess.Popen(command, env=environment(), stdout=file, stderr=file, start_new_session=True)
    try:
        end = time.monotonic() + 240
        while not (output / "checkpoint-4").is_dir():
            assert run.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < end, "no checkpoint was written"
            time.sleep(0.02)
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert not (output / f"checkpoint-{STEPS}").exists()
    return log.read_text()


def losses(output: Path) -> list[float]:
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.fixture(scope="module")
def alone(training, tmp_path_factory):
    """The output of one process, without DeepSpeed and without a break."""
    output = tmp_path_factory.mktemp("alone")
    train(argv=training(output, "--gradient_accumulation_steps", 2))
    assert losses(output)[-1] < losses(output)[0] - 1
    return output


@pytest.mark.parametrize("stage", [2, 3])
def test_killed_and_resumed_it_ends_as_one_process_unbroken(stage, alone, command, tmp_path):
    printed = launch_and_kill(command(stage, tmp_path), tmp_path)
    line = r"training 155,072 of 191,680 parameters on 8 samples for 10 steps of 2 samples \(2 x cpu, 1 at once, 1 acc"
    assert len(re.findall(line, printed)) == 1  # the first process alone says it
    printed = launch(command(stage, tmp_path))
    assert f"resuming from {tmp_path}/checkpoint-" in printed
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-4)
    wanted = load_file(alone / "model.safetensors")
    found = load_file(tmp_path / "model.safetensors")
    assert set(found) == set(wanted)
    assert all(torch.allclose(value, wanted[name], atol=1e-4) for name, value in found.items())
    tokenizer, model, _, _ = load_pretrained_model(str(tmp_path), None, "llava", device="cpu")
    prompt = torch.tensor([[1, -200, *tokenizer("what is this?").input_ids[1:]]])
    answer = model.generate(prompt, images=torch.zeros(1, 3, 56, 56), min_new_tokens=3, max_new_tokens=3)
    assert answer.shape == (1, 3)


def test_lora_over_tiles_under_zero_3_as_under_torchrun(command, llama_folder, tmp_path):
    more = ("--lora_enable", True, "--lora_r", 4, "--lora_alpha", 8, "--mm_projector_lr", 2e-3)
    more += ("--image_aspect_ratio", "anyres", "--mm_patch_merge_type", "spatial_unpad")
    more += ("--image_grid_pinpoints", "[(56, 112), (112, 56)]", "--mm_use_im_start_end", True)
    more += ("--gradient_checkpointing", True, "--weight_decay", 0.1)
    whole, cut = tmp_path / "torchrun", tmp_path / "zero3"
    launch(command(None, whole, *more))
    launch(command(3, cut, *more))
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-4)
    assert losses(cut)[-1] < losses(cut)[0]
    for place in ("", "checkpoint-4", "checkpoint-8"):
        for name, read in (("adapter_model.safetensors", load_file), ("non_lora_trainables.bin", torch.load)):
            found, wanted = read(cut / place / name), read(whole / place / name)
            assert set(found) == set(wanted)
            assert all(torch.allclose(value, wanted[key], atol=1e-4) for key, value in found.items())
    assert "base_model.model.model.image_newline" in wanted
    assert wanted["base_model.model.model.embed_tokens.weight"].shape == (522, 64)
    _, model, _, _ = load_pretrained_model(str(cut), str(llama_folder), "llava-lora", device="cpu")
    assert torch.allclose(
        model.get_model().image_newline.cpu(),
        torch.load(cut / "non_lora_trainables.bin")["base_model.model.model.image_newline"],
    )
