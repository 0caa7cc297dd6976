"""A benchmark from question file to score: python -m llava.eval.launch gqa --model-path MODEL --pruner none

Checks the benchmark's files and makes its question file (`llava.eval.prepare`), answers it in contiguous chunks, one
process for each device of this and of other nodes, joins the chunks, and scores them (`llava.eval.score`). Started
again after any kind of end, it goes on. Answers lie in <benchmark>/answers/<split>/<model>/<pruner>/, so that no run
overwrites another.

Flags that are not listed here go to the answering program as they are (`--top_p`, `--dtype`, ...).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from flowcut.registry import parse_pruner
from llava.eval import score
from llava.eval.benchmarks.contract import PROGRAMS, Benchmark
from llava.eval.benchmarks.registry import DATA, MODULES, benchmark
from llava.eval.files import write_atomic
from llava.eval.judge import settings as judge_settings
from llava.mm_utils import get_model_name_from_path

# What LLaVA's scripts give these programs.
PROGRAM_FLAGS = {"science": ("--single-pred-prompt",), "mmbench": ("--single-pred-prompt",)}
BENCHMARK_FLAGS = {"mmbench_cn": ("--lang", "cn")}
# Number of nodes and this node's place among them, as SLURM and torchrun's users set them.
_NODES = ("SLURM_NNODES", "NNODES")
_NODE = ("SLURM_NODEID", "NODE_RANK")


class Share(NamedTuple):
    """This node's part: its devices, and the numbers of their chunks among `chunks`."""

    devices: list[str]
    numbers: list[int]
    chunks: int


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=MODULES)
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder of all benchmarks (default: {DATA})")
    parser.add_argument("--split", help="default: the one of the published number; a wrong name lists all")
    parser.add_argument("--model-path", required=True, help="checkpoint folder, or Hub name")
    parser.add_argument("--pruner", help="flowcut:budget=64, ..., or none (default: the checkpoint's own, if any)")
    parser.add_argument("--limit", type=int, help="ask this many questions only, spread evenly")
    parser.add_argument("--devices", help="0,1 or cpu (default: CUDA_VISIBLE_DEVICES, else all GPUs, else the CPU)")
    parser.add_argument("--nodes", type=int, default=_number(_NODES, 1), help="machines that share the work")
    parser.add_argument("--node", type=int, default=_number(_NODE, 0), help="which of them this is, from 0")
    parser.add_argument("--temperature", default="0", help="0 is greedy, as for published numbers")
    parser.add_argument("--skip-bad", action="store_true", help="score although some questions were unanswerable")
    judge_settings.add_arguments(parser)
    return parser


def judge_flags(args: argparse.Namespace) -> list[str]:
    """The judge's flags as they were given, for the scoring program."""
    known = argparse.ArgumentParser(add_help=False)
    judge_settings.add_arguments(known)
    flags: list[str] = []
    for action in known._actions:
        value = getattr(args, action.dest)
        if value != action.default:
            values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
            flags += [action.option_strings[0], *map(str, values)]
    return flags


def _number(names: Sequence[str], default: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdecimal()), default)


def share(args: argparse.Namespace) -> Share:
    """Raises ValueError for devices or nodes that cannot be."""
    if not 0 <= args.node < args.nodes:
        raise ValueError(f"--node {args.node} of {args.nodes} does not exist; it runs from 0 to {args.nodes - 1}")
    named = args.devices if args.devices is not None else os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda.is_available() and args.devices is None:
        # LLaVA's calling habit on a machine without GPUs: as many processes as devices were named.
        devices = ["cpu"] * max(1, len((named or "").split(",")))
    else:
        devices = [name.strip() for name in (named or "").split(",") if name.strip()]
        devices = devices or [str(index) for index in range(torch.cuda.device_count())]
    numbers = [args.node * len(devices) + index for index in range(len(devices))]
    return Share(devices, numbers, args.nodes * len(devices))


def answers_folder(folder: Path, split: str, args: argparse.Namespace) -> Path:
    pruner = re.sub(r"[:=,]", "_", args.pruner or "as_trained")
    limit = f"_limit_{args.limit}" if args.limit else ""
    return folder / "answers" / split / get_model_name_from_path(args.model_path) / f"{pruner}{limit}"


def prepare(args: argparse.Namespace, bench: Benchmark) -> dict:
    """The question file's document. Raises ValueError when the benchmark's files are not complete."""
    split = bench.split(args.split)
    prepared = bench.prepare(bench.folder(args.data, split), split, args.limit)
    if prepared.absent and not args.skip_bad:
        raise ValueError(
            f"{len(prepared.absent)} images of questions are not in {prepared.images}, such as {prepared.absent[0]}; "
            f"get them, or score without these questions by --skip-bad"
        )
    return {"questions": prepared.question_file, "images": prepared.images, "split": split.name}


def answer(part: Share, command: list[str], folder: Path) -> bool:
    """Run this node's chunks side by side; whether all of them came to their end."""
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
        running.append((done, subprocess.Popen([*command, *chunk], env=environment)))
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


def _chunk(folder: Path, chunks: int, number: int) -> Path:
    return folder / f"{chunks}_{number}.jsonl"


def _marker(folder: Path, chunks: int, number: int) -> Path:
    return folder / f"{chunks}_{number}.done"


def merge(folder: Path, chunks: int) -> Path | None:
    """All chunks in one file, in the questions' order; None while some are not finished."""
    if not all(_marker(folder, chunks, number).is_file() for number in range(chunks)):
        return None
    merged = folder / "merge.jsonl"
    write_atomic(merged, "".join(_chunk(folder, chunks, number).read_text("utf-8") for number in range(chunks)))
    return merged


def main(argv: list[str] | None = None) -> None:
    args, passed_on = build_parser().parse_known_args(argv)
    bench = benchmark(args.benchmark)
    try:
        if args.pruner is not None:
            parse_pruner(args.pruner)
        judge_settings.settings_of(args)
        part = share(args)
        prepared = prepare(args, bench)
    except ValueError as error:
        sys.exit(f"error: {error}")
    folder = answers_folder(Path(prepared["questions"]).parent, prepared["split"], args)
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", PROGRAMS[bench.program], "--model-path", args.model_path]
    command += ["--question-file", str(prepared["questions"])]
    command += ["--image-folder", str(prepared["images"])] if prepared["images"] else []
    command += ["--pruner", args.pruner] if args.pruner else []
    command += ["--temperature", args.temperature, "--max_new_tokens", str(bench.max_new_tokens)]
    command += ["--skip-bad"] if args.skip_bad else []
    command += [*PROGRAM_FLAGS.get(bench.program, ()), *BENCHMARK_FLAGS.get(bench.name, ()), *passed_on]
    if not answer(part, command, folder):
        sys.exit("error: not every question was answered; start again to go on, or --skip-bad to score the rest")
    merged = merge(folder, part.chunks)
    if merged is None:
        print(json.dumps({"benchmark": bench.name, "waiting_for": "other nodes"}))
        return
    flags = ["--data", str(args.data), "--answers-file", str(merged)]
    flags += ["--split", args.split] if args.split else []
    score.main([bench.name, *flags, *judge_flags(args), *(["--subset"] if args.limit else [])])


if __name__ == "__main__":
    main()
