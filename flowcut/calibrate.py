"""Find a fixed schedule for FlowCut: the number of patches kept at each selection, as the mean over some images.

    python -m flowcut.calibrate --model-path liuhaotian/llava-v1.5-7b --image pictures/ --pruner flowcut:budget=64

prints the pruner with these numbers, as text that `attach` and every program take. See `FlowCut.calibrated`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowcut.cli.command_line import Parser, parse_first, program
from flowcut.cli.progress import progress_bar


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--model-path", help="LLaVA checkpoint, without anyres")
    parser.add_argument("--image", nargs="+", default=[], help="picture files, or folders of them")
    parser.add_argument("given", nargs="*", metavar="MODEL IMAGE", help="the same, without the flag")
    parser.add_argument("--pruner", default="flowcut:budget=64", help="settings to calibrate (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=200, help="how many pictures at most (default: %(default)s)")
    return parser


parse_first(__name__, build_parser)

import torch
from torch import nn

from flowcut.attach import attach
from flowcut.checkpoints import picture_calls
from flowcut.methods.flowcut import FlowCut
from flowcut.registry import parse_pruner, pruner_to_text

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class Calibration:
    """What was found.

    Attributes:
        pruner: with the numbers in `counts`.
        lowest, highest: for each selection, the fewest and most patches that any image kept there.
        images: how many encoder rows were seen.
    """

    pruner: FlowCut
    lowest: tuple[int, ...]
    highest: tuple[int, ...]
    images: int


def calibrate(model: nn.Module, calls: Iterable[Callable[[], Any]], pruner: FlowCut) -> Calibration:
    """Watch an adaptive FlowCut and take the mean of its numbers.

    Args:
        model: of a known family, without a pruner.
        calls: each runs the model, or its vision encoder alone, over images of one size.
        pruner: with the settings to calibrate.

    Raises:
        ValueError: nothing was called, images differ in size, or the pruner has its numbers already or needs none.
    """
    if pruner.counts is not None or not pruner.adaptive:
        raise ValueError("a pruner with counts, or with adaptive=False, has its numbers already; leave these out")
    kept: list[tuple[int, ...]] = []
    sizes: set[int] = set()
    with torch.no_grad(), attach(model, pruner) as handle:
        layers = pruner.selections(handle.shape.encoders[-1])[:-1]
        if not layers:
            raise ValueError("this pruner selects only once, to its budget, so there is nothing to calibrate")
        for call in calls:
            call()
            assert handle.trace is not None
            sizes |= set(handle.trace.entering[0])
            kept += zip(*(handle.trace.leaving[layer] for layer in layers), strict=True)
    if not sizes:
        raise ValueError("no image to calibrate on; give a folder with some pictures, a few dozen are enough")
    if len(sizes) > 1:
        few, many = min(sizes), max(sizes)
        raise ValueError(f"these images have {few} to {many} patches, but counts need one number; sort them by size")
    columns = list(zip(*kept, strict=True))
    counts = tuple(round(sum(column) / len(column)) for column in columns)
    found = replace(pruner, counts=counts)
    return Calibration(found, tuple(map(min, columns)), tuple(map(max, columns)), len(kept))


def pictures_in(places: Sequence[str]) -> list[str]:
    """Picture files, and those that lie in folders, in order of their names."""
    found: list[str] = []
    for place in map(Path, places):
        inside = sorted(file for file in place.iterdir() if file.suffix.lower() in PICTURES) if place.is_dir() else []
        found += map(str, inside or [place])
    return found


@program
def main(argv: Sequence[str] | None = None) -> int:
    """The last line printed is one JSON document."""
    args = build_parser().parse_args(argv)
    model_path, *images = [*filter(None, [args.model_path]), *args.given, *args.image] or [""]
    if not images:
        raise ValueError("give a checkpoint and pictures: --model-path CHECKPOINT --image FOLDER")
    pruner = parse_pruner(args.pruner)
    if not isinstance(pruner, FlowCut):
        raise ValueError(f"--pruner {args.pruner} is not FlowCut; only FlowCut has an adaptive schedule")
    if args.limit < 1:
        raise ValueError(f"--limit {args.limit} is not a number of pictures >= 1")
    files = pictures_in(images)[: args.limit]
    model, calls = picture_calls(model_path, files)
    found = calibrate(model, progress_bar(calls, total=len(files), desc="images"), pruner)
    text = pruner_to_text(found.pruner)
    print(text)
    told = {"pruner": text, "counts": found.pruner.counts, "lowest": found.lowest, "highest": found.highest}
    print(json.dumps({**told, "images": found.images, "model": model_path}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
