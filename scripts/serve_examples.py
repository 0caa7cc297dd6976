"""Draw the example pictures of the web page, scenes of the embedded benchmark's development split.

python -m scripts.serve_examples
"""

from __future__ import annotations

from pathlib import Path

from flowcut.cli.command_line import Parser, parse_first, program
from llava.serve.examples import FOLDER


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, help="default: where the page looks for them")
    return parser


parse_first(__name__, build_parser)

from PIL import Image

from scripts.embedded.data import scene_at
from scripts.embedded.scenes import draw

SCENES = {"square": 2, "letter": 7, "diamond": 8, "background": 12}


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, number in SCENES.items():
        scene, _ = scene_at("dev", number)
        path = args.out / f"{name}.jpg"
        Image.fromarray(draw(scene)).save(path, quality=88)
        print(path)


if __name__ == "__main__":
    main()
