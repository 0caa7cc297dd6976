"""Run the parts of a GPU day one after the other, each in its own process with a time limit; see day.sh."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowcut.cli.command_line import Parser, print_result, program


@dataclass(frozen=True)
class Part:
    """A program that prints JSON as its last line.

    Attributes:
        name: of its file, OUT/NAME.json.
        seconds: its time limit.
        words: after `python -m`.
        tiny: the same with tiny models on a CPU.
    """

    name: str
    seconds: int
    words: tuple[str, ...]
    tiny: tuple[str, ...]


def _ops(batch: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    words = "flowcut.bench", "ops", "--batch", batch
    big = "--device", "cuda", "--dtype", "bfloat16", "--repeats", "5"
    return (*words, *big), (*words, "--geometry", "tiny", "--repeats", "1", "--warmup", "0")


def _train(budget: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    words = "llava.train.bench", "--pruner", f"flowcut:budget={budget}", "--geometry"
    big = "llava-1.5-7b", "--layers-slice", "8", "--dtype", "bfloat16", "--batch", "8", "--gradient-checkpointing"
    tiny = ("llava.train.bench", "--pruner", f"flowcut:budget={int(budget) // 16}", "--geometry", "tiny")
    quick = "--layers-slice", "2", "--device", "cpu", "--warmup", "0", "--repeats", "1"
    return (*words, *big, "--device", "cuda", "--repeats", "4"), (*tiny, *quick)


PARTS = (
    Part("correctness", 75, ("scripts.gpu.correctness",), ("scripts.gpu.correctness", "--tiny")),
    Part("ops_1", 45, *_ops("1")),
    Part("ops_4", 45, *_ops("4")),
    Part("speed_llava_1_5", 110, ("scripts.gpu.speed", "llava-1.5-7b"), ("scripts.gpu.speed", "tiny", "--tiny")),
    Part("speed_llava_next", 110, ("scripts.gpu.speed", "llava-next-7b"), ("scripts.gpu.speed", "tiny-next", "--tiny")),
    Part("train_192", 47, *_train("192")),
    Part("train_128", 47, *_train("128")),
)
"""Together below 8 minutes."""


def run(part: Part, out: Path, tiny: bool) -> dict[str, Any]:
    """Run a part and write what became of it."""
    words = part.tiny if tiny else part.words
    start = time.monotonic()
    with (out / f"{part.name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *words], stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
        try:
            printed, timed_out = process.communicate(timeout=part.seconds)[0], False
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            printed, timed_out = process.communicate()[0], True
        log.write(printed)
    told: dict[str, Any] = {"part": part.name, "command": f"python -m {' '.join(words)}", "limit_s": part.seconds}
    told |= {"seconds": round(time.monotonic() - start, 1), "status": process.returncode, "timed_out": timed_out}
    told |= {"tiny": tiny, "result": _last_json(printed)}
    (out / f"{part.name}.json").write_text(json.dumps(told, indent=1) + "\n")
    return told


def _last_json(printed: str) -> Any:
    """The last line that is JSON: a part that ran out of time has told what it had by then."""
    for line in reversed(printed.splitlines()):
        if line.startswith(("{", "[")):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return None


def build_parser(parts: Sequence[Part]) -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("out", type=Path, help="folder for one JSON and one log of each part")
    parser.add_argument("--tiny", action="store_true", help="tiny models on a CPU")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in parts], help="these alone")
    return parser


@program
def main(argv: Sequence[str] | None = None, parts: Sequence[Part] = PARTS) -> int:
    """Returns 0 if all parts went through, 1 otherwise."""
    args = build_parser(parts).parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    seconds: dict[str, float] = {}
    for part in parts:
        if args.parts and part.name not in args.parts:
            continue
        told = run(part, args.out, args.tiny)
        said = "ran out of time" if told["timed_out"] else f"status {told['status']}"
        print(f"{part.name}: {said}, {told['seconds']} s", flush=True)
        seconds[part.name] = told["seconds"]
        if told["timed_out"] or told["status"]:
            failed.append(part.name)
    if failed:
        print(f"failed: {', '.join(failed)}; their logs are in {args.out}", file=sys.stderr)
    print_result({"out": str(args.out), "seconds": seconds, "failed": failed})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
