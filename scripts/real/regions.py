"""Draw what several pruners leave of pictures: kept patches, or regions that were merged into one token.

    python -m scripts.real.regions PHOTO ... --model-path runs/real/dinov2-small-saliency --out flowcut_plus.jpg

One row for each picture. A black dot is the place of a remaining token; a colour is a token of several patches, and
dropped patches are pale. Takes the folder of a CLIP, SigLIP or DINOv2 encoder, or a LLaVA checkpoint.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from flowcut.cli.command_line import Parser, parse_first, program

PRUNERS = ("flowcut:budget=64", "tome:budget=64", "flowcut_plus:budget=64")


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="pictures, or folders of them")
    parser.add_argument("--model-path", also=["--model"], default="playground/embedded", help="(default: %(default)s)")
    parser.add_argument("--pruner", action="append", help="may be given again (default: FlowCut, ToMe, FlowCut+)")
    parser.add_argument("--out", type=Path, required=True, help="file to write: .jpg, .png, .svg")
    return parser


parse_first(__name__, build_parser)

import numpy as np
import torch
from PIL import Image

from flowcut import attach
from flowcut.flow.__main__ import read_pictures
from flowcut.flow.figures import panels
from flowcut.flow.study import pruner_for_encoders
from flowcut.flow.subject import Subject, load_subject
from flowcut.plots import merged_regions, veil
from flowcut.trace import Trace


def panel(picture: np.ndarray, trace: Trace, grid: tuple[int, int]) -> np.ndarray:
    """The picture with what a pruner left of it."""
    if trace.sources:
        return merged_regions(picture, trace.sources[0].cpu().numpy(), grid)
    return veil(picture, trace.final[0].cpu().numpy(), grid)


def traced(subject: Subject, pixels: torch.Tensor, text: str) -> Trace:
    with torch.no_grad(), attach(subject.encoder.model, pruner_for_encoders(text)) as handle:
        subject.encoder.model(pixels)
        assert handle.trace is not None
        return handle.trace


def draw(subject: Subject, images: Sequence[tuple[str, Image.Image]], pruners: Sequence[str], file: Path) -> None:
    figure, axes = panels(len(images), 1 + len(pruners), 2.6, 2.6)
    for row, (name, image) in zip(axes, images, strict=True):
        pixels = subject.pixels(image)
        picture, (down, across) = subject.picture(pixels), subject.grid(pixels)
        row[0].imshow(picture)
        row[0].set_title(Path(name).stem, fontsize=9)
        for ax, text in zip(row[1:], pruners, strict=True):
            trace = traced(subject, pixels, text)
            ax.imshow(panel(picture, trace, (down, across)))
            places = trace.final[0].cpu().numpy()
            size = picture.shape[0] / down
            ax.plot((places % across + 0.5) * size, (places // across + 0.5) * size, "k.", markersize=2.5)
            ax.set_title(f"{text}: {len(places)} of {down * across}", fontsize=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, pil_kwargs={"quality": 88} if file.suffix == ".jpg" else None)


@program
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    images, pruners = read_pictures(args.images), args.pruner or list(PRUNERS)
    draw(load_subject(args.model_path), images, pruners, args.out)
    print(json.dumps({"file": str(args.out), "pictures": len(images), "pruners": pruners}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
