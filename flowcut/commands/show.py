"""Draw the patches of a picture that are kept after each selection.

flowcut show --image docs/images/scene.png --pruner flowcut:budget=64 --out kept.png
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from flowcut.cli.command_line import Parser, parse_first, print_result, program


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--image", required=True, help="picture to look at")
    parser.add_argument("--model-path", default="playground/embedded", help="LLaVA checkpoint (default: %(default)s)")
    parser.add_argument("--pruner", default="flowcut:budget=64", help="see `flowcut list` (default: %(default)s)")
    parser.add_argument("--out", default="kept.png", help="file to write (default: %(default)s)")
    return parser


parse_first(__name__, build_parser)

from flowcut.checkpoints import pruned_picture
from flowcut.plots import kept_patches
from flowcut.registry import parse_pruner


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Run a LLaVA's vision tower over one image and write the picture of what was kept; returns 0."""
    args = build_parser().parse_args(argv)
    pruner = parse_pruner(args.pruner)
    if pruner is None:
        raise ValueError("--pruner none keeps every patch; try flowcut:budget=64")
    picture, trace, side = pruned_picture(args.image, args.model_path, pruner)
    steps = [(f"after layer {layer}", kept[0].cpu().numpy()) for layer, kept in sorted(trace.kept.items())]
    kept_patches(picture, steps, (side, side)).save(args.out)
    path = str(Path(args.out).resolve())
    print(path)
    print_result({"picture": path, "pruner": args.pruner, "kept": {layer: len(own) for layer, own in steps}})
    return 0


if __name__ == "__main__":
    sys.exit(main())
