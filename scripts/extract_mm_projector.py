"""Extract the projector from a whole checkpoint, as mm_projector.bin for --pretrain_mm_mlp_adapter:

python scripts/extract_mm_projector.py --model-path CHECKPOINT --out FOLDER/mm_projector.bin
"""

from __future__ import annotations

import os
from pathlib import Path

from flowcut.cli.command_line import Parser, parse_first, print_result, program


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--model-path", required=True, help="checkpoint: folder or Hub name")
    parser.add_argument("--out", also=["--output"], dest="output", required=True, help="file to write")
    return parser


parse_first(__name__, build_parser)

import torch

from llava.model.checkpoint import local_folder, read_weights
from llava.model.transformers_layout import to_llava_name

WANTED = ("mm_projector.", "image_newline")


def extract(model_path: str, output: str) -> list[str]:
    """Write the projector's weights (and the newline token of anyres images); returns their names.

    Shards, safetensors and .bin files and both layouts are supported. Raises ValueError when there is no projector.
    """
    folder = local_folder(model_path)
    named = ((to_llava_name(name), value) for name, value in read_weights(folder))
    weights = {name: value.clone() for name, value in named if any(part in name for part in WANTED)}
    if not weights:
        raise ValueError(f"{folder} holds no projector; give a LLaVA checkpoint")
    target = Path(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.save(weights, target.with_name(target.name + ".partial"))
    os.replace(target.with_name(target.name + ".partial"), target)
    return sorted(weights)


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    names = extract(args.model_path, args.output)
    print(f"wrote {', '.join(names)} to {args.output}")
    print_result({"out": args.output, "weights": names})


if __name__ == "__main__":
    main()
