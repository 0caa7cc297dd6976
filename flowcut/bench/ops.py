"""`python -m flowcut.bench ops`: how many operator calls and waits a pruner adds to a vision encoder, and host time.

Counts do not depend on a machine or its load. Host time is the wall time of a layer so small that almost all of it is
Python and dispatch: a CLIP tower of 24 layers and width 64, once with 576 patches and once with 36, of which a budget
above 8 becomes 8.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import transformers
from transformers import CLIPVisionConfig, CLIPVisionModel

from flowcut.attach import attach
from flowcut.bench.counting import Calls, count, count_waits_of_gpu
from flowcut.bench.geometries import GEOMETRIES
from flowcut.bench.measuring import clock, device_name
from flowcut.bench.model import Bench
from flowcut.bench.synthetic import draw_weights, pictures, sharpen
from flowcut.pruner import Pruner


def report(args: argparse.Namespace, pruner: Pruner) -> dict[str, Any]:
    """Count both runs of the encoder, and time the small ones.

    Raises:
        ValueError: the pruner cannot work on this model.
    """
    bench = Bench(argparse.Namespace(**{**vars(args), "command": "encode"}), pruner)
    vanilla = count(partial(bench.call, "vanilla"))
    with attach(bench.model, pruner) as handle:
        pruned = count(partial(bench.call, "pruned"))
        on_gpu = count_waits_of_gpu(partial(bench.call, "pruned")) if bench.device.type == "cuda" else None
    assert handle.trace is not None
    layers, selections = len(handle.trace.entering), len(handle.trace.kept)
    added = {kind: _totals(pruned)[kind] - _totals(vanilla)[kind] for kind in ("operators", "work", "waits")}
    return {
        **{name: getattr(args, name) for name in ("command", "geometry", "batch", "budget", "pruner")},
        **{name: getattr(args, name) for name in ("dtype", "attention", "device")},
        "layers": layers,
        "selections": selections,
        "lengths_differ": any(len(set(counts)) > 1 for counts in handle.trace.leaving),
        "vanilla": _totals(vanilla),
        "pruned": _totals(pruned),
        "added_per_layer": {kind: added[kind] / layers for kind in ("operators", "work")},
        "waits_per_selection": added["waits"] / selections if selections else 0.0,
        "work_added": dict(pruned.work - vanilla.work),
        "waits": dict(pruned.waits),
        "waits_by_cuda": on_gpu,
        "host": {str(patches): _host(pruner, patches, args) for patches in (576, 36)},
        "device_name": device_name(bench.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def table(told: dict[str, Any]) -> str:
    """The report for people."""
    layers = told["layers"]
    lines = [", ".join(str(told[name]) for name in ("geometry", "pruner", "dtype", "attention", "device_name"))]
    lengths = "rows of different length" if told["lengths_differ"] else "rows of equal length"
    lines += [f"batch {told['batch']}, {layers} layers, {told['selections']} selections, {lengths}", ""]
    lines += [f"{'':10}{'calls':>8}{'work':>8}{'waits':>8}{'calls/layer':>13}{'work/layer':>12}"]
    for run in ("vanilla", "pruned"):
        calls = told[run]
        each = f"{calls['operators'] / layers:13.1f}{calls['work'] / layers:12.1f}"
        lines.append(f"{run:10}{calls['operators']:8}{calls['work']:8}{calls['waits']:8}{each}")
    added = told["added_per_layer"]
    lines += [f"{'added':10}{'':24}{added['operators']:13.1f}{added['work']:12.1f}"]
    lines += ["", f"waits of the host: {told['waits_per_selection']:.2f} a selection"]
    for patches, host in told["host"].items():
        times = f"{host['vanilla_ms_per_layer']:.3f} -> {host['pruned_ms_per_layer']:.3f} ms a layer"
        lines.append(f"width 64, {patches} patches: {times}, pruned / vanilla {host['ratio']:.3f}")
    return "\n".join([*lines, ""])


def _totals(calls: Calls) -> dict[str, int]:
    return {"operators": calls.operators, "work": calls.work.total(), "waits": calls.waits.total()}


def _host(pruner: Pruner, patches: int, args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds that a layer of the small tower takes, and their ratio; medians of runs in turn, one image."""
    if patches < 576 and isinstance(pruner.budget, int) and pruner.budget > 8:
        pruner = replace(pruner, budget=8)
    side = 14 * round(patches**0.5)
    config = CLIPVisionConfig(**{**GEOMETRIES["narrow"].vision, "image_size": side})
    model, device = CLIPVisionModel(config).eval().to(args.device), torch.device(args.device)
    draw_weights(model, args.seed)
    shown, others = (pictures(1, side, args.seed + more).to(device) for more in (0, 1))
    sharpen(model, partial(model, others))
    seconds: dict[str, list[float]] = {"vanilla": [], "pruned": []}
    with torch.inference_mode():
        for _ in range(args.warmup + args.repeats):
            seconds["vanilla"].append(clock(partial(model, shown), device))
            with attach(model, pruner):
                seconds["pruned"].append(clock(partial(model, shown), device))
    median = {run: statistics.median(values[args.warmup :]) for run, values in seconds.items()}
    each = {f"{run}_ms_per_layer": 1e3 * value / config.num_hidden_layers for run, value in median.items()}
    return {**each, "ratio": median["pruned"] / median["vanilla"]}
