"""Splits questions into contiguous chunks, one process for each device of this and of other nodes, and joins them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from llava.eval.files import write_atomic

MERGED = "merge.jsonl"
_DEVICE = re.compile(r"\d+|cpu|(GPU|MIG)-[\w/-]+")
PARENT = "LLAVA_EVAL_PARENT"  # the variable with the number of the process that a chunk belongs to
_SECONDS = 0.2
_STDERR = 2


class Share(NamedTuple):
    """This node's part: its devices, and the numbers of their chunks among `chunks`."""

    devices: list[str]
    numbers: list[int]
    chunks: int


def share_of(devices: str | None = None, nodes: int = 1, node: int = 0) -> Share:
    """The devices and chunks of one of several nodes.

    devices: such as "0,1" or "cpu"; None uses CUDA_VISIBLE_DEVICES, else all GPUs, else the CPU.

    Raises ValueError for an invalid node, and for devices that name none.
    """
    if devices is not None and not all(_DEVICE.fullmatch(name.strip()) for name in devices.split(",")):
        raise ValueError(f"--devices {devices} names no devices; give numbers of GPUs, such as 0,1, or cpu")
    if not 0 <= node < nodes:
        raise ValueError(f"--node {node} of {nodes} does not exist; it runs from 0 to {nodes - 1}")
    named = devices if devices is not None else os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda.is_available() and devices is None:
        # Without GPUs: as many processes as devices are named, as in LLaVA's scripts.
        own = ["cpu"] * max(1, len((named or "").split(",")))
    else:
        own = [name.strip() for name in (named or "").split(",") if name.strip()]
        own = own or [str(index) for index in range(torch.cuda.device_count())]
    numbers = [node * len(own) + index for index in range(len(own))]
    return Share(own, numbers, nodes * len(own))


def answer_chunks(part: Share, command: Sequence[str], folder: Path) -> bool:
    """Run this node's chunks in parallel; returns whether all of them finished.

    command: of an answering program, up to the flags that name chunk, answers file and device. folder: of the answers.
    Whatever the programs say goes to stderr: the caller may have a document to print on stdout.
    """
    running = []
    for device, number in zip(part.devices, part.numbers, strict=True):
        done = _marker(folder, part.chunks, number)
        done.unlink(missing_ok=True)
        chunk = ["--num-chunks", str(part.chunks), "--chunk-idx", str(number)]
        chunk += ["--answers-file", str(_chunk(folder, part.chunks, number))]
        environment = {**os.environ, PARENT: str(os.getpid())}
        if device == "cpu":
            chunk += ["--device", "cpu"]
        else:
            environment["CUDA_VISIBLE_DEVICES"] = device
        running.append((done, subprocess.Popen([*command, *chunk], env=environment, stdout=_STDERR)))
    try:
        states = [process.wait() for _, process in running]
    except KeyboardInterrupt:
        for _, process in running:
            process.terminate()
        raise
    for (done, _), state in zip(running, states, strict=True):
        if state == 0:
            write_atomic(done, "")
    return not any(states)


def end_with_parent() -> None:
    """End this process soon after the one that started it by `answer_chunks`, however that one ended.

    Otherwise it would go on, and a second start would answer the same questions beside it.
    """
    parent = os.environ.pop(PARENT, "")
    if parent.isdecimal():
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)  # answers are on the disk line by line


def merge(folder: Path, chunks: int) -> Path | None:
    """All chunks in one file, in the questions' order; None while some are not finished."""
    if not all(_marker(folder, chunks, number).is_file() for number in range(chunks)):
        return None
    merged = folder / MERGED
    write_atomic(merged, "".join(_chunk(folder, chunks, number).read_text("utf-8") for number in range(chunks)))
    return merged


def _chunk(folder: Path, chunks: int, number: int) -> Path:
    return folder / f"{chunks}_{number}.jsonl"


def _marker(folder: Path, chunks: int, number: int) -> Path:
    return folder / f"{chunks}_{number}.done"
