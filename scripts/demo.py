"""The demo: accuracy against visual tokens, on the embedded model and its benchmark.

    python -m scripts.demo            (or: make demo; LIMIT=60 make demo)

Evaluates the model blind, unpruned, and with three methods at four budgets; prints a table, writes one JSON file per
row and a picture of kept patches under --out. It may be interrupted and started again. The last line of stdout is one
JSON document.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flowcut.cli.command_line import Parser, parse_first, program
from flowcut.plots import kept_patches
from llava.eval.media.images import load_image
from llava.eval.models.reply import DTYPES
from llava.eval.questions import subset
from scripts.embedded import data


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument(
        "--model-path", also=["--model"], dest="model", default="playground/embedded", help="checkpoint folder"
    )
    parser.add_argument("--data", type=Path, default=Path("playground/data/embedded"), help="created if missing")
    parser.add_argument("--out", type=Path, default=Path("results/demo"), help="folder for JSON, answers and picture")
    parser.add_argument("--limit", type=int, default=200, help="questions per row, spread evenly over all; 0: all")
    parser.add_argument("--device", help="default: CUDA where there is one")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float16, on a CPU float32")
    parser.add_argument("--fresh", action="store_true", help="repeat existing measurements")
    return parser


parse_first(__name__, build_parser)

import torch

from flowcut import attach
from flowcut.registry import METHODS as REGISTRY
from llava.eval.models.llava_checkpoint import Checkpoint, load_checkpoint
from llava.mm_utils import process_images
from scripts.embedded.rows import BUDGETS
from scripts.embedded.rows import MAIN as METHODS
from scripts.tables.cells.in_process import Cell, Plan, Setup, measure, report

BENCHMARK = "embedded"


def cells() -> list[Cell]:
    """The rows in the order of the table; blind comes first."""
    rows = [Cell(BENCHMARK, blind=True), Cell(BENCHMARK)]
    return rows + [Cell(BENCHMARK, f"{method}:budget={budget}") for budget in BUDGETS for method in METHODS]


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as text; speed is relative to the row without a pruner."""
    full = next(row["ms"]["median"] for row in results if row["method"] == "none" and not row["blind"])
    head = ("pruner", "tokens", "accuracy", "95 % CI", "in encoder*", "GFLOPs enc", "prefill", "total", "ms", "speed")
    lines = [head]
    for row in results:
        low, high = row["ci95"]
        tokens, gflops, ms = row["tokens"], row["gflops"], row["ms"]["median"]
        lines.append(
            (
                "blind (other picture)" if row["blind"] else row["method"],
                f"{tokens['llm']:.0f}",
                f"{100 * row['accuracy']:.1f}",
                f"{100 * low:.1f}-{100 * high:.1f}",
                f"{tokens['encoder_inputs']:.0f} / {tokens['encoder_outputs']:.0f}",
                f"{gflops['encoder']:.2f}",
                f"{gflops['prefill']:.2f}",
                f"{gflops['total']:.2f}",
                f"{ms:.0f}",
                f"{full / ms:.2f}x",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    texts = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    texts.insert(1, "-" * len(texts[0]))
    return "\n".join([*texts, "* mean visual tokens over the encoder's layers: entering / leaving them"])


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The JSON document in the last line of stdout."""
    rows = [
        {
            "pruner": row["method"],
            "budget": row["budget"],
            "accuracy": row["accuracy"],
            "gflops": row["gflops"]["total"],
            "ms": row["ms"]["median"],
        }
        for row in results
        if not row["blind"]
    ]
    seeing = next(row for row in results if not row["blind"])
    blind = next(row for row in results if row["blind"])
    return {"benchmark": BENCHMARK, "n": seeing["n"], "blind": blind["accuracy"], "rows": rows}


def picture(checkpoint: Checkpoint, files: Sequence[Path], budget: int = 64) -> Image.Image:
    """The patches that each method keeps of square pictures; one row per picture."""
    model, tower = checkpoint.model, checkpoint.model.get_vision_tower()
    side = tower.num_patches_per_side
    sheets = []
    for file in files:
        image = load_image(file)
        [pixels] = process_images([image], checkpoint.image_processor, model.config)
        steps = []
        for method in METHODS:
            with torch.inference_mode(), attach(model, REGISTRY[method].make(budget=budget)) as handle:
                tower(pixels[None].to(model.device, model.dtype))
            assert handle.trace is not None
            steps.append((method, handle.trace.final[0].cpu().numpy()))
        sheets.append(kept_patches(np.asarray(image), steps, (side, side)))
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)))
    for number, sheet in enumerate(sheets):
        whole.paste(sheet, (0, sum(above.height for above in sheets[:number])))
    return whole


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    command = "python -m scripts.demo " + shlex.join(sys.argv[1:] if argv is None else argv)
    checkpoint = load_checkpoint(args.model, device=args.device, dtype=args.dtype, default_mode="vicuna_v1")
    if not (args.data / "answers.jsonl").is_file():
        data.main(["--out", str(args.data), "--split", "test"])
    setup = Setup(checkpoint, args.data, args.out, args.limit or None, 1, args.fresh, command.strip())
    plans = [Plan(setup, cell) for cell in cells()]
    results, problems = measure(plans)
    report(problems)
    if not all(result["n"] for result in results):
        sys.exit("error: a row without any answer cannot be shown")
    print(table(results))
    kept = args.out / BENCHMARK / "kept.png"
    picture(checkpoint, subset(sorted((args.data / "images").glob("*.png")), 4)).save(kept)
    print(f"one JSON per row, the answers and a picture of kept patches ({kept.name}) are in {kept.parent}")
    print(json.dumps(summary(results)))
    if problems:
        sys.exit(1)


if __name__ == "__main__":
    main()
