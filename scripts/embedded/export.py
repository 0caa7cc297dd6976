"""Write a trained embedded model as the committed checkpoint: LLaVA's layout, float16, with its own tower."""

from __future__ import annotations

from pathlib import Path

from flowcut.cli.command_line import Parser, parse_first, print_result, program


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--model", required=True, help="output folder of the last training stage")
    parser.add_argument("--out", type=Path, default=Path("playground/embedded"))
    return parser


parse_first(__name__, build_parser)

import torch

from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import save_llava_checkpoint, written


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    tokenizer, model, image_processor, _ = load_pretrained_model(args.model, None, "embedded", device="cpu")
    model.config.unfreeze_mm_vision_tower = True  # this tower exists nowhere else
    save_llava_checkpoint(model, tokenizer, args.out, image_processor=image_processor, dtype=torch.float16)
    print_result(written(args.out))


if __name__ == "__main__":
    main()
