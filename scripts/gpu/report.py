"""Render what a GPU day left in OUT: `python -m scripts.gpu.report OUT` writes docs/gpu_results.md."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowcut.cli.command_line import Parser, program
from scripts.gpu.day import PARTS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "gpu_results.md"
HEAD = """# Results on a GPU

Made by `bash scripts/gpu/day.sh OUT` and `python -m scripts.gpu.report OUT`; see [GPU checks](gpu_checks.md).
"""
NOT_RUN = "not run yet"


def page(told: Mapping[str, Mapping[str, Any]]) -> str:
    """The whole page, from what each part left, by its name.

    Raises:
        ValueError: the parts were run with tiny models, which say nothing about a GPU.
    """
    if any(part["tiny"] for part in told.values()):
        raise ValueError("these parts were run with --tiny, on a CPU; they are not results of a GPU")
    lines = [HEAD, "## Parts", "", "| part | result | seconds | limit |", "| --- | --- | ---: | ---: |"]
    for part in PARTS:
        found = told.get(part.name)
        if found is None:
            lines.append(f"| {part.name} | {NOT_RUN} | | {part.seconds} |")
        else:
            lines.append(f"| {part.name} | {outcome(found)} | {found['seconds']:.0f} | {found['limit_s']} |")
    lines.append("")
    for name, section in SECTIONS.items():
        result = told.get(name, {}).get("result")
        lines += [f"## {TITLES[name]}", "", *(section(result) if result else [NOT_RUN.capitalize() + "."]), ""]
    return "\n".join(lines)


def outcome(part: Mapping[str, Any]) -> str:
    """In a few words, how a part ended."""
    if part["timed_out"]:
        return "ran out of time, with part of its results" if part["result"] else "ran out of time"
    return "passed" if part["status"] == 0 else f"failed (status {part['status']})"


def correctness(result: Mapping[str, Any]) -> list[str]:
    checks, failed = result["checks"], result["failed"]
    lines = [f"{len(checks) - len(failed)} of {len(checks)} checks passed, torch {result['torch']}."]
    for name in failed:
        lines += ["", f"- failed: {name}: {checks[name].get('error', checks[name])}"]
    return lines


def ops(result: Mapping[str, Any]) -> list[str]:
    added, layers = result["added_per_layer"], result["layers"]
    vanilla, seen = result["vanilla"]["work"] / layers, result["waits_by_cuda"]
    where = f"{result['device_name']}, {result['dtype']}, batch {result['batch']}"
    lines = [
        f"{where}: {vanilla:.1f} working calls a layer of the bare encoder, {added['work']:.1f} added by "
        f"{result['pruner']}; {result['waits_per_selection']:.2f} waits of the host a selection by the counter, "
        f"{NOT_RUN if seen is None else seen} in all by CUDA.",
        "",
    ]
    for patches, host in result["host"].items():
        lines.append(f"- width 64, {patches} patches: pruned / vanilla {host['ratio']:.2f}")
    return lines


def speed(result: Mapping[str, Any]) -> list[str]:
    lines = [f"{result['device_name']}, {result['dtype']}, budget {result['budget']}; medians, times as faster.", ""]
    for batch, commands in result["batches"].items():
        names = list(dict.fromkeys(name for command in COMMANDS for name in commands.get(command, {})))
        lines += [f"Batch {batch}:", "", f"| run | {' | '.join(COMMANDS)} | peak MB (generate) |"]
        lines.append("| --- " + "| ---: " * (len(COMMANDS) + 1) + "|")
        for name in names:
            cells = [_cell(commands.get(command, {}).get(name)) for command in COMMANDS]
            memory = commands.get("generate", {}).get(name, {}).get("peak_memory_mb")
            lines.append(f"| {name} | {' | '.join(cells)} | {'' if memory is None else f'{memory:.0f}'} |")
        for command in COMMANDS:
            found = commands.get(command, {}).items()
            lines += [f"- failed: {name}, {command}: {entry['error']}" for name, entry in found if "error" in entry]
        graph = commands.get("encode, CUDA graph")
        if graph:
            said = graph.get("error") or f"{1e3 * graph['graph_s']:.1f} ms ({graph['speedup']:.2f}x of the bare tower)"
            lines += ["", f"The calibrated tower as a CUDA graph: {said}."]
        lines.append("")
    lines += [f"- not measured: {name}: {why}" for name, why in result.get("refused", {}).items()]
    return lines


def _cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return NOT_RUN
    if "error" in entry:
        return "failed"
    return f"{1e3 * entry['s']:.1f} ms" + (f" ({entry['speedup']:.2f}x)" if "speedup" in entry else "")


def train(result: Mapping[str, Any]) -> list[str]:
    tokens = result["visual_tokens"]
    where = f"{result['device_name']}, {result['decoder_layers']} decoder layers, batch {result['batch']}"
    unpruned, pruned = (
        f"{1e3 * result[f'{run}_s']:.0f} ms with {tokens[run]} visual tokens" for run in ("unpruned", "pruned")
    )
    return [
        f"{where}: a step takes {unpruned} and {pruned}, {result['speedup']:.2f}x; memory "
        f"{result['memory_ratio']:.2f} of it."
    ]


COMMANDS = "encode", "prefill", "generate"
TITLES = {
    "correctness": "Recorded cases and laws",
    "ops_1": "Operator calls, batch 1",
    "ops_4": "Operator calls, batch 4",
    "speed_llava_1_5": "LLaVA-1.5-7B (the paper: prefill 1.6x at 64 tokens)",
    "speed_llava_next": "LLaVA-NeXT-7B (the paper: prefill 3.2x at 160 tokens)",
    "train_192": "A training step with 192 tokens (the paper: 1.5x)",
    "train_128": "A training step with 128 tokens (the paper: 1.6x)",
}
_KINDS = {"correctness": correctness, "ops": ops, "speed": speed, "train": train}
SECTIONS = {name: _KINDS[name.split("_")[0]] for name in TITLES}


def read(out: Path) -> dict[str, Any]:
    """What each part left, by its name; nothing for those that were not run."""
    files = {part.name: out / f"{part.name}.json" for part in PARTS}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("out", type=Path, help="folder that day.sh wrote; one that is missing gives 'not run yet'")
    parser.add_argument("--page", type=Path, default=PAGE, help="file to write (default: docs/gpu_results.md)")
    return parser


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0."""
    args = build_parser().parse_args(argv)
    args.page.write_text(page(read(args.out)))
    print(args.page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
