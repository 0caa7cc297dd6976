"""Splits questions into contiguous chunks, one process for each device of this and of other nodes, and joins them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from llava.eval.files import write_atomic

MERGED = "merge.jsonl"
_STDERR = 2


class Share(NamedTuple):
    """This node's part: its devices, and the numbers of their chunks among `chunks`."""

    devices: list[str]
    numbers: list[int]
    chunks: int


def share_of(devices: str | None = None, nodes: int = 1, node: int = 0) -> Share:
    """The devices and chunks of one of several nodes.

    devices: such as "0,1" or "cpu"; None uses CUDA_VISIBLE_DEVICES, else all GPUs, else the CPU.

    Raises ValueError for an invalid node.
    """
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
        environment = dict(os.environ)
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
