"""Encode, prefill and generate at full size with random sharpened weights: each method against the bare model.

The model is built once (`flowcut.bench`). For each batch size and command the bare model and every method alternate,
so that other load affects all of them alike; a CUDA graph of the calibrated encoder comes last. After each batch size
the results so far are printed as one JSON line, so that a run that is stopped loses nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from flowcut.cli.command_line import Parser, parse_first, program


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("geometry", help="as of flowcut.bench")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, in float32, one round, nothing compiled")
    return parser


parse_first(__name__, build_parser)

import torch
import transformers

from flowcut import attach, parse_pruner
from flowcut.bench.__main__ import parse
from flowcut.bench.measuring import clock, device_name
from flowcut.bench.memory import peak_memory_mb
from flowcut.bench.model import Bench
from flowcut.calibrate import calibrate
from flowcut.methods.flowcut import FlowCut
from flowcut.pruner import Pruner

COMMANDS = "encode", "prefill", "generate"
OTHERS = "visionzip", "fastv", "sparsevlm", "pdrop", "tome"


@dataclass(frozen=True)
class Run:
    """A way to run the model: with a pruner or none."""

    name: str
    pruner: Pruner | None = None
    compile: bool = False

    def attached(self, model: Any) -> Any:
        return nullcontext() if self.pruner is None else attach(model, self.pruner, compile=self.compile)


def runs_of(bench: Bench, budget: int, with_compiled: bool) -> tuple[list[Run], dict[str, str]]:
    """Every run that this model allows, and why the others are not there."""
    flowcut = FlowCut(budget)
    runs = [Run("vanilla"), Run("flowcut", flowcut)]
    if with_compiled:
        runs.append(Run("flowcut, compiled", flowcut, compile=True))
    refused: dict[str, str] = {}
    try:
        found = calibrate(bench.model, [partial(bench.encode, bench.shown)], flowcut)
        runs.append(Run("flowcut, calibrated", found.pruner))
    except ValueError as error:
        refused["flowcut, calibrated"] = str(error)
    for name in OTHERS:
        try:
            pruner = parse_pruner(f"{name}:budget={budget}")
            assert pruner is not None
            with attach(bench.model, pruner):
                pass
            runs.append(Run(name, pruner))
        except ValueError as error:
            refused[name] = str(error)
    return runs, refused


def measure(bench: Bench, runs: Sequence[Run], command: str, warmup: int, repeats: int) -> dict[str, Any]:
    """Time a command with every run, in turn. -> by run: median seconds, ratio and speedup against vanilla, memory."""
    bench.args = argparse.Namespace(**{**vars(bench.args), "command": command})
    features: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {run.name: [] for run in runs}
    memory: dict[str, float] = {}
    errors: dict[str, str] = {}
    for run in runs:
        try:
            bench.features = features
            with run.attached(bench.model):
                _prepare(bench, run)
                bench.call(run.name)
                memory[run.name] = peak_memory_mb(partial(bench.call, run.name), bench.device)
            features = bench.features
        except (RuntimeError, ValueError, NotImplementedError) as error:  # one method's failure is a result
            errors[run.name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    for _ in range(warmup + repeats):
        for run in runs:
            if run.name not in errors:
                with run.attached(bench.model):
                    seconds[run.name].append(clock(partial(bench.call, run.name), bench.device))
    median = {name: statistics.median(values[warmup:]) for name, values in seconds.items() if values}
    told: dict[str, Any] = {name: {"error": error} for name, error in errors.items()}
    for name, value in median.items():
        told[name] = {"s": value, "peak_memory_mb": memory[name]}
        if "vanilla" in median:
            told[name] |= {"ratio": value / median["vanilla"], "speedup": median["vanilla"] / value}
    return told


def _prepare(bench: Bench, run: Run) -> None:
    """What a call needs of the encoder: the prompt's placeholders, and for a prefill the features."""
    if bench.args.command == "encode":
        return
    encoded = bench.encode(bench.shown)
    if run.pruner is None:
        bench.placeholders = sum(part[..., 0].numel() for part in encoded.pooler_output) // bench.args.batch
        bench.prompt = bench.write_prompt()
    bench.features = {**bench.features, run.name: encoded}


def graph_of_encoder(bench: Bench, pruner: Pruner, repeats: int) -> dict[str, Any]:
    """The vision tower with fixed numbers as a CUDA graph: seconds, and whether it gives the same output."""
    with torch.inference_mode(), attach(bench.model, pruner) as handle:
        tower = handle.anatomy.encoders[0].model
        pixels = bench.shown["pixel_values"].flatten(0, -4)
        call: Callable[[], Any] = lambda: tower(pixels).last_hidden_state  # noqa: E731
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        eager = call().clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = call()
        graph.replay()
        torch.cuda.synchronize()
        seconds = [clock(graph.replay, bench.device) for _ in range(repeats)]
        plain = [clock(call, bench.device) for _ in range(repeats)]
    with torch.inference_mode():
        vanilla = [clock(lambda: tower(pixels), bench.device) for _ in range(repeats)]
    same = torch.allclose(output, eager, atol=1e-2, rtol=1e-2)
    median = statistics.median
    return {
        **{"graph_s": median(seconds), "eager_s": median(plain), "vanilla_s": median(vanilla), "same_output": same},
        "speedup": median(vanilla) / median(seconds),
    }


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Prints one JSON line after each batch size; the last one is whole."""
    args = build_parser().parse_args(argv)
    batches, warmup, repeats = ((1,), 0, 1) if args.tiny else ((1, 8), 1, 3)
    where = ["--device", "cpu", "--threads", "1"] if args.tiny else ["--device", "cuda", "--dtype", "bfloat16"]
    short = ["--new-tokens", "3", "--text-tokens", "10", "--layers-slice", "8"] if args.tiny else []
    words, pruner = parse(["generate", "--geometry", args.geometry, *where, *short])
    told: dict[str, Any] = {"geometry": args.geometry, "budget": words.budget, "dtype": words.dtype, "batches": {}}
    told |= {"torch": torch.__version__, "transformers": transformers.__version__}
    bench = Bench(words, pruner)
    told["device_name"] = device_name(bench.device)
    with torch.inference_mode():
        for batch in batches:
            bench.args = argparse.Namespace(**{**vars(words), "batch": batch})
            bench.shown = bench.media(batch, words.seed)
            runs, refused = runs_of(bench, words.budget, with_compiled=not args.tiny)
            told["refused"] = refused
            entry = told["batches"][str(batch)] = {}
            for command in COMMANDS:
                entry[command] = measure(bench, runs, command, warmup, repeats)
            fixed = [run.pruner for run in runs if run.name == "flowcut, calibrated"]
            if bench.device.type == "cuda" and fixed and fixed[0] is not None:
                try:
                    entry["encode, CUDA graph"] = graph_of_encoder(bench, fixed[0], 10)
                except RuntimeError as error:
                    entry["encode, CUDA graph"] = {"error": " ".join(str(error).split())[:300]}
            print(json.dumps(told), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
