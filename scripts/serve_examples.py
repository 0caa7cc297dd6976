"""Draw the example pictures of the web page, scenes of the embedded benchmark's development split.

python -m scripts.serve_examples
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from llava.serve.examples import FOLDER
from scripts.embedded.data import scene_at
from scripts.embedded.scenes import draw

SCENES = {"square": 2, "letter": 7, "diamond": 8, "background": 12}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER, help="default: where the page looks for them")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, number in SCENES.items():
        scene, _ = scene_at("dev", number)
        path = args.out / f"{name}.jpg"
        Image.fromarray(draw(scene)).save(path, quality=88)
        print(path)


if __name__ == "__main__":
    main()
