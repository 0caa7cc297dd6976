"""How the KV cache grows with the answer, with and without a pruner: bytes of the real cache after each new token.

    python -m scripts.kv_cache                          (the embedded model, ST3 at 192 tokens)
    python -m scripts.kv_cache --pruner flowcut:budget=64 --model-path PATH --new-tokens 256
    python -m scripts.kv_cache --formula                (LLaVA-1.5-7B in half precision, by flowcut.cost, no model)

The model reads a picture of noise and may not end its answer, because neither changes the number of bytes. Prints one
line for every `--every` tokens and, as the last line, the report as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from flowcut.cli.command_line import Parser, parse_first, program

GEOMETRY = "llava-1.5-7b"


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument(
        "--model-path", also=["--model"], default="playground/embedded", help="checkpoint folder (default: %(default)s)"
    )
    parser.add_argument("--pruner", help="such as st3:budget=192 (default: ST3 at 192 tokens)")
    parser.add_argument("--new-tokens", type=int, default=128, help="length of the answer (default: %(default)s)")
    parser.add_argument("--every", type=int, default=16, help="tokens from line to line (default: %(default)s)")
    parser.add_argument("--question", default="What is in the picture?", help="(default: %(default)s)")
    parser.add_argument("--formula", action="store_true", help=f"{GEOMETRY} by formula; st3 only")
    return parser


parse_first(__name__, build_parser)

import numpy as np
import torch
from PIL import Image
from torch import nn

from flowcut import attach
from flowcut.bench.geometries import GEOMETRIES
from flowcut.compat import CACHE
from flowcut.cost import kv_cache_bytes
from flowcut.methods.annealing import Annealing
from flowcut.registry import parse_pruner
from llava.eval.models.llava_checkpoint import Checkpoint, load_checkpoint
from llava.mm_utils import tokenizer_image_token


def bytes_held(cache: Any) -> int:
    """Bytes of all keys and values in a KV cache."""
    parts = [part for layer in cache.layers for part in (layer.keys, layer.values)]
    return sum(part.numel() * part.element_size() for part in parts)


@contextmanager
def each_cache(decoder: nn.Module, found: list[int]) -> Iterator[None]:
    """Append the bytes of the cache after each forward of a decoder. Enter it after a pruner was attached."""
    hook = decoder.register_forward_hook(lambda module, args, output: found.append(bytes_held(output[CACHE])))
    try:
        yield
    finally:
        hook.remove()


def measured(checkpoint: Checkpoint, pruner: str, new_tokens: int, question: str) -> list[int]:
    """Bytes of the cache after the prompt, and after each of `new_tokens` - 1 further tokens (the last is not read)."""
    found: list[int] = []
    model, given = checkpoint.model, parse_pruner(pruner)
    noise = np.random.default_rng(0).integers(0, 256, (336, 336, 3), dtype=np.uint8)
    ids = tokenizer_image_token(f"<image>\n{question}", checkpoint.tokenizer)
    prompt = torch.as_tensor(ids, device=model.device)[None]
    attached = nullcontext() if given is None else attach(model, given)
    with torch.inference_mode(), attached, each_cache(model.model, found):
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            images=checkpoint.pixels([Image.fromarray(noise)]),
            do_sample=False,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
        )
    return found


def by_formula(pruner: Annealing | None, new_tokens: int, text: int = 62, visual: int = 576) -> list[float]:
    """The same for LLaVA-1.5-7B in half precision, from the tokens that a method with a schedule leaves in each layer.

    Raises:
        ValueError: the method has no schedule that anneals.
    """
    from transformers import LlamaConfig

    config = LlamaConfig(**GEOMETRIES[GEOMETRY].text)
    layers = config.num_hidden_layers
    if pruner is not None and not hasattr(pruner, "schedule"):
        raise ValueError(f"{type(pruner).__name__} has no schedule over decoder layers; --formula takes st3")
    path = [visual] * layers if pruner is None else pruner.schedule(visual, layers).entering  # type: ignore[attr-defined]
    found = []
    for grown in range(new_tokens):
        entries = path if pruner is None else pruner.left(path, grown)
        found.append(kv_cache_bytes(config, [text + grown + count for count in entries]))
    return found


def report(vanilla: Sequence[float], pruned: Sequence[float], every: int) -> list[dict[str, float]]:
    """One row for every `every` tokens, and for the last one."""
    steps = sorted({*range(0, len(vanilla), every), len(vanilla) - 1})
    return [
        {"tokens": step, "unpruned_mb": vanilla[step] / 1e6, "pruned_mb": pruned[step] / 1e6}
        | {"share": pruned[step] / vanilla[step]}
        for step in steps
    ]


def table(rows: Sequence[dict[str, float]]) -> str:
    lines = [f"{'new tokens':>10}{'unpruned MB':>13}{'pruned MB':>12}{'share':>8}"]
    for row in rows:
        lines.append(
            f"{row['tokens']:>10.0f}{row['unpruned_mb']:>13.3f}{row['pruned_mb']:>12.3f}{100 * row['share']:>7.1f}%"
        )
    return "\n".join(lines)


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    pruner = args.pruner or ("st3:budget=192" if args.formula else "st3:budget=192,start=1,stride=1")
    if args.new_tokens < 1 or args.every < 1:
        raise ValueError("--new-tokens and --every are numbers of tokens >= 1")
    if args.formula:
        given: Any = parse_pruner(pruner)
        runs = [by_formula(None, args.new_tokens), by_formula(given, args.new_tokens)]
    else:
        checkpoint = load_checkpoint(args.model_path, default_mode="vicuna_v1")
        runs = [list(measured(checkpoint, one, args.new_tokens, args.question)) for one in ("none", pruner)]
    rows = report(runs[0], runs[1], args.every)
    print(table(rows))
    print(json.dumps({"pruner": pruner, "model": GEOMETRY if args.formula else args.model_path, "rows": rows}))


if __name__ == "__main__":
    main()
