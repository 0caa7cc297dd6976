"""Requests a second, time to first token and KV blocks a request, for several budgets, with one engine.

    python integrations/vllm/bench.py --model FOLDER [--budgets 576 192 128 64 32] [--at-once 1 4 16] [--requests 64]

Pictures of noise, all different, so that no cache helps; the budgets take turns, and each number is the median of the
rounds. Run it on a machine that does nothing else: it prints the machine's load before it starts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from typing import Any

import numpy as np
from PIL import Image


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint in transformers' layout")
    parser.add_argument("--budgets", type=int, nargs="+", default=[576, 192, 128, 64, 32])
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 16], help="requests in flight")
    parser.add_argument("--requests", type=int, default=64, help="requests of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--prompt", default="USER: <image>\nDescribe the image. ASSISTANT:")
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--block-size", type=int, default=32)
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
            begin, first = time.perf_counter(), None
            async for output in engine.generate(prompt, settings, request_id=f"{seed}-{number}"):
                if first is None:
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


async def run(args: argparse.Namespace) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=args.model,
            dtype=args.dtype,
            hf_overrides={"flowcut": {"budget": max(args.budgets)}},
            max_model_len=args.max_model_len,
            block_size=args.block_size,
            max_num_seqs=max(args.at_once),
        )
    )
    print(json.dumps({"load_before": os.getloadavg(), "cores": os.cpu_count(), **vars(args)}))
    try:
        for at_once in args.at_once:
            found: dict[int, list[dict[str, float]]] = {budget: [] for budget in args.budgets}
            for round_number in range(-1, args.rounds):  # the first one warms up
                for budget in args.budgets:
                    seed = 1000 * at_once + 10 * budget + round_number + 1
                    row = await measure(engine, args, budget, at_once, seed)
                    if round_number >= 0:
                        found[budget].append(row)
            for budget, rows in found.items():
                medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
                print(json.dumps({"at_once": at_once, "budget": budget, **medians}), flush=True)
    finally:
        engine.shutdown()


def main(argv: list[str] | None = None) -> None:
    asyncio.run(run(build_parser().parse_args(argv)))


if __name__ == "__main__":
    main()
