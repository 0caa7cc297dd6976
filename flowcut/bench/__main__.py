"""Measure what pruning saves: `python -m flowcut.bench encode|prefill|generate|ops --geometry llava-1.5-7b ...`.

Models have the published sizes and random weights; nothing is downloaded. Three runs alternate, round by round, so that
other load on the machine affects all of them alike:

- vanilla: the model as it is;
- pruned: with the pruner attached;
- unscored: with a pruner that keeps as many tokens in every row and layer as the pruned run, but computes no scores.
  The ratio of pruned to unscored is the cost of scoring.

`encode` runs the vision encoder: a bare CLIPVisionModel without hidden states for LLaVA-1.5, elsewhere the model's own
method of encoding, with projector (and the hidden states that transformers keeps there). `prefill` runs the language
model over text and one image or video per sample, encoded beforehand. `generate` runs everything.

Two things differ from the published sizes: `--layers-slice` sets the number of decoder layers, and the vocabulary has
1000 tokens, because embedding and head need memory but do not count in the FLOPs. LLaVA-NeXT gets images of 672 x 672
(five tiles), Video-LLaVA 8 frames, Qwen2-VL images of 672 x 672 (2304 patches, 576 tokens).

The weights are random but attend as sharply as trained ones (`flowcut.bench.synthetic`); `prefill` alone leaves this
out.

`ops` measures no time. It counts operator calls, those that do work, and synchronisations (`flowcut.bench.ops`).

On a CPU, glibc returns freed tensors above 32 MB to the system, and allocating them again costs page faults. Here glibc
is set to keep this memory, for all runs (docs/LOG.md, 2026-11-24).

Peak memory is that of activations (output and KV cache included) in a separate run that is not timed. On a GPU it is
the allocator's; on a CPU the largest sum of living storages that operators returned, without their inner workspace.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from flowcut.bench.geometries import COMMANDS, GEOMETRIES, OPS
from flowcut.cli.command_line import Parser, parse_first, program
from flowcut.cli.progress import progress_bar


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number >= {least}")
        return int(text)

    return number


def build_parser() -> Parser:
    parser = Parser((__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for command, what in {**{name: f"time {what}" for name, what in COMMANDS.items()}, "ops": OPS}.items():
        add = commands.add_parser(command, help=what, description=f"{what.capitalize()}.").add_argument
        add("--geometry", default="llava-1.5-7b", choices=GEOMETRIES, help="sizes of the model (default: %(default)s)")
        add("--layers-slice", type=_at_least(1), help="decoder layers (default: all; on a CPU 2, two-stage 4)")
        add("--batch", type=_at_least(1), default=1, help="images or videos at once (default: %(default)s)")
        add("--budget", type=int, help="visual tokens to keep (default: the geometry's)")
        add("--pruner", default="flowcut", help="such as flowcut:interval=3; `flowcut list` shows all")
        add("--text-tokens", type=_at_least(2), default=64, help="text tokens of the prompt (default: %(default)s)")
        add("--new-tokens", type=_at_least(1), default=16, help="tokens to generate (default: %(default)s)")
        add("--threads", type=_at_least(1), help="CPU threads (default: torch's)")
        add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="(default: %(default)s)")
        add("--device", default="cpu", choices=("cpu", "cuda"), help="(default: %(default)s)")
        add("--attention", default="sdpa", choices=("sdpa", "eager"), help="(default: %(default)s)")
        add("--warmup", type=_at_least(0), default=2, help="warm-up rounds, not counted (default: %(default)s)")
        add("--repeats", type=_at_least(1), default=9, help="counted rounds (default: %(default)s)")
        add("--seed", type=_at_least(0), default=0, help="seed of weights, images and text (default: %(default)s)")
    return parser


parse_first(__name__, build_parser)

import torch
import transformers

from flowcut.bench import ops
from flowcut.bench.measuring import clock, device_name, keep_freed_memory, spread
from flowcut.bench.memory import peak_memory_mb
from flowcut.bench.model import Bench
from flowcut.bench.replay import Replay
from flowcut.pruner import Pruner
from flowcut.registry import parse_pruner

RUNS = "vanilla", "pruned", "unscored"


def measure(bench: Bench, pruner: Pruner) -> dict[str, Any]:
    """Go through the three runs, time them in turn and weigh them. -> the report."""
    args, device = bench.args, bench.device
    pruners: dict[str, Pruner | None] = {"vanilla": None, "pruned": pruner}
    seconds: dict[str, list[float]] = {run: [] for run in RUNS}
    memory: dict[str, float] = {}
    steps = len(RUNS) * (1 + args.warmup + args.repeats) + 2
    with torch.inference_mode(), progress_bar(total=steps, desc=f"{args.command} {args.geometry}") as progress:
        bench.prepare("vanilla", None)
        handle = bench.prepare("pruned", pruner)
        trace, pruners["unscored"] = handle.trace, Replay.of(handle, device)
        again = bench.prepare("unscored", pruners["unscored"]).trace
        assert trace is not None
        assert again is not None
        if again.entering != trace.entering or bench.decoder_paths(again) != bench.decoder_paths(trace):
            raise ValueError(f"{args.pruner} cannot be replayed without scores")
        progress.update(len(RUNS))
        bench.first.clear()
        gc.collect()
        gc.freeze()  # what is there now: collecting between timed calls then takes no time
        for _ in range(args.warmup + args.repeats):
            for run in RUNS:
                with bench.attached(pruners[run]):
                    seconds[run].append(clock(partial(bench.call, run), device))
                progress.update()
        gc.unfreeze()
        first = bench.first[args.warmup * len(RUNS) :]
        for run in RUNS[:2]:
            with bench.attached(pruners[run]):
                memory[run] = peak_memory_mb(partial(bench.call, run), device)
            progress.update()
    timed = {run: values[args.warmup :] for run, values in seconds.items()}
    median = {run: statistics.median(values) for run, values in timed.items()}
    ratio = median["pruned"] / median["vanilla"]
    flops = bench.flops(trace, True) / bench.flops(trace, False)
    return {
        **{name: getattr(args, name) for name in ("command", "geometry", "batch", "budget", "pruner")},
        **{f"{run}_s": median[run] for run in RUNS},
        "ratio": ratio,
        "speedup": 1 / ratio,
        "overhead": median["pruned"] / median["unscored"] - 1,
        "flops_ratio": flops,
        "ratio_over_flops": ratio / flops,
        "images_per_s": {run: args.batch / median[run] for run in RUNS},
        "first_token_s": {run: statistics.median(first[at :: len(RUNS)]) for at, run in enumerate(RUNS) if first},
        "spread": {run: spread(values) for run, values in timed.items()},
        "peak_memory_mb": memory,
        "tokens_per_layer": [list(path) for path in zip(*trace.entering, strict=True) if args.command != "prefill"],
        "decoder_tokens_per_layer": bench.decoder_paths(trace),
        "decoder_layers": None if bench.bare else args.layers_slice,
        **{name: getattr(args, name) for name in ("text_tokens", "new_tokens", "dtype", "attention", "device")},
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        **{name: getattr(args, name) for name in ("warmup", "repeats", "seed")},
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    names = "command", "geometry", "pruner", "dtype", "attention", "device_name"
    lines = [", ".join(str(report[name]) for name in names)]
    lines += [f"batch {report['batch']}, {report['threads']} threads, {report['repeats']} rounds", ""]
    lines += [f"{'':10}{'median s':>10}{'min s':>10}{'IQR %':>8}{'images/s':>10}{'first s':>10}{'peak MB':>10}"]
    for run in RUNS:
        wide, first = report["spread"][run], report["first_token_s"].get(run, math.nan)
        times = f"{report[f'{run}_s']:10.4f}{wide['min_s']:10.4f}{100 * wide['iqr_over_median']:8.1f}"
        memory = report["peak_memory_mb"].get(run, math.nan)
        lines += [f"{run:10}{times}{report['images_per_s'][run]:10.3f}{first:10.4f}{memory:10.1f}"]
    lines += ["", f"pruned / vanilla: time {report['ratio']:.3f}, FLOPs {report['flops_ratio']:.3f}"]
    lines += [f"time / FLOPs: {report['ratio_over_flops']:.3f}; pruned / unscored - 1: {report['overhead']:.3f}", ""]
    return "\n".join(lines)


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Pruner]:
    """Arguments with defaults filled in, and the pruner.

    Raises:
        ValueError: something cannot be used; one line.
    """
    args = build_parser().parse_args(argv)
    args.threads = args.threads or torch.get_num_threads()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU here; use --device cpu")
    geometry = GEOMETRIES[args.geometry]
    depth = geometry.text["num_hidden_layers"]
    args.layers_slice = args.layers_slice or (geometry.slice if args.device == "cpu" else depth)
    if args.layers_slice > depth:
        raise ValueError(f"--layers-slice {args.layers_slice} is more than the {depth} layers of {args.geometry}")
    if "budget=" in args.pruner and args.budget is not None:
        raise ValueError(f"--pruner {args.pruner} has a budget already; leave --budget out")
    if "budget=" not in args.pruner and args.pruner != "none":
        budget = geometry.budget if args.budget is None else args.budget
        args.pruner += f"{',' if ':' in args.pruner else ':'}budget={budget}"
    pruner = parse_pruner(args.pruner)
    if pruner is None:
        raise ValueError("--pruner none keeps every token; try flowcut")
    args.budget = pruner.budget
    return args, pruner


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table and, as the last line, the report as JSON."""
    threads = torch.get_num_threads()
    try:
        args, pruner = parse(argv)
        keep_freed_memory()
        torch.set_num_threads(args.threads)
        counted = args.command == "ops"
        report = ops.report(args, pruner) if counted else measure(Bench(args, pruner), pruner)
    finally:
        torch.set_num_threads(threads)
    print(ops.table(report) if counted else table(report))
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
