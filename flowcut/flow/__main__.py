"""Show how information flows through a vision encoder: the paper's figures 2 to 4 and 6 to 11 for your own model.

    python -m flowcut.flow docs/images/scene.png --model-path playground/embedded --question "What color is the star?"

Writes a page, index.html, that needs no other file; the figures as PNG and SVG; their numbers as CSV and JSON; and
arrays.npz with study.json, from which --from draws everything again without the model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowcut.cli.command_line import Parser, program

if TYPE_CHECKING:
    from PIL import Image

    from flowcut.flow.study import Study

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def build_parser() -> argparse.ArgumentParser:
    made = Parser(__doc__)
    made.add_argument(
        "images", nargs="*", metavar="IMAGE", help="pictures, or folders of them; numbers are means over all"
    )
    made.add_argument(
        "--model-path",
        also=["--model"],
        dest="model",
        default="playground/embedded",
        help="a LLaVA checkpoint of either layout, another of transformers' own, or the folder of a CLIP, SigLIP or "
        "DINOv2 encoder (default: %(default)s)",
    )
    made.add_argument("--pruner", default="flowcut:budget=64", help="see `flowcut list` (default: %(default)s)")
    made.add_argument(
        "--against",
        action="append",
        metavar="PRUNER",
        help="a pruner to compare with, may be given again (default: one early cut by FlowCut's score, fastervlm and "
        "visionzip, all at the same budget)",
    )
    made.add_argument("--question", default="", help="question about every picture, with each pruner and without")
    made.add_argument(
        "--patches", type=int, nargs="+", metavar="N", help="patches whose attention is drawn, row by row from 0"
    )
    made.add_argument("--out", default="report", help="folder to write (default: %(default)s)")
    made.add_argument("--from", dest="saved", metavar="FOLDER", help="draw an existing report again, without the model")
    return made


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0."""
    args = build_parser().parse_args(argv)
    from flowcut.flow.report import write_report
    from flowcut.flow.study import Study

    if args.saved and args.images:
        raise ValueError(f"--from {args.saved} draws what was recorded; leave out {args.images[0]}, or --from")
    study = Study.load(Path(args.saved)) if args.saved else look(args)
    page = write_report(study, Path(args.out))
    print(json.dumps({"page": str(page.resolve()), "pictures": len(study.names), "layers": study.layers}))
    return 0


def look(args: argparse.Namespace) -> Study:
    """Load the model, and record the pictures."""
    from flowcut.cli.progress import progress_bar
    from flowcut.flow.study import compared_with, make_study, pruner_for_encoders
    from flowcut.flow.subject import load_subject

    pruner = pruner_for_encoders(args.pruner)
    images = read_pictures(args.images)
    subject = load_subject(args.model)
    against = args.against or compared_with(pruner.budget, subject.encoder.depth)
    pruners = list(dict.fromkeys([args.pruner, *against]))
    with progress_bar(total=len(images) * (len(pruners) + 1), desc="recording", unit="image") as bar:
        return make_study(subject, images, pruners, args.question, args.patches, tick=bar.update)


def read_pictures(paths: Sequence[str]) -> list[tuple[str, Image.Image]]:
    """Name and RGB picture of each file, and of each picture in folders, in the order of names.

    Raises:
        ValueError: there are none, or one cannot be read.
    """
    from flowcut.checkpoints import load_image

    files: list[str] = []
    for path in paths:
        inside = Path(path)
        if inside.is_dir():
            found = sorted(str(file) for file in inside.iterdir() if file.suffix.lower() in PICTURES)
            if not found:
                raise ValueError(f"{path} contains no picture; known file extensions are {', '.join(PICTURES)}")
            files += found
        else:
            files.append(path)
    if not files:
        raise ValueError("no picture is given; name files or folders, such as docs/images/scene.png")
    return [(Path(file).name, load_image(file)) for file in files]


if __name__ == "__main__":
    sys.exit(main())
