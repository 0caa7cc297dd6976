"""Answer one question about one or more pictures.

python -m llava.eval.run_llava --model-path playground/embedded --image PICTURE --query "..." \\
    --pruner flowcut:budget=64
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from flowcut.cli.command_line import Parser, parse_first, program
from llava.eval.media.images import load_image
from llava.eval.models.reply import DTYPES, Generation
from llava.pictures import picture_names


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--model-path", required=True, help="checkpoint folder, or Hub name")
    parser.add_argument("--model-base", help="base language model of a projector-only checkpoint")
    parser.add_argument(
        "--image",
        also=["--image-file"],
        dest="image_file",
        required=True,
        help="path or http(s) address; several between --sep",
    )
    parser.add_argument("--allow-private", action="store_true", help="fetch from loopback and private addresses too")
    parser.add_argument("--query", required=True, help="the question")
    parser.add_argument("--conv-mode", help="prompt template (default: the checkpoint's own, else by its name)")
    parser.add_argument("--sep", default=",")
    parser.add_argument("--temperature", type=float, default=0.2, help="0 is greedy")
    parser.add_argument("--top_p", type=float)
    parser.add_argument("--num_beams", type=int, default=1)
    parser.add_argument("--max_new_tokens", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0, help="for temperatures above 0")
    parser.add_argument("--pruner", help="flowcut:budget=64, ..., or none (default: the checkpoint's own, if any)")
    parser.add_argument("--device", help="cuda, cuda:1, mps, cpu (default: cuda where there is one)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float16, on a CPU float32")
    return parser


parse_first(__name__, build_parser)

import torch

from llava.eval.models.llava_answerer import LlavaAnswerer
from llava.eval.models.llava_checkpoint import load_checkpoint

__all__ = ["eval_model", "image_parser", "load_image", "load_images", "main"]


def image_parser(args: argparse.Namespace) -> list[str]:
    """The picture names in `args.image_file`: text (see `picture_names`), a path, a list of them, or None for none."""
    given = args.image_file
    if isinstance(given, (list, tuple)):
        return [str(name) for name in given]
    return [] if given is None else [str(given)] if isinstance(given, Path) else picture_names(given, args.sep)


def load_images(image_files: Sequence[str | Path], allow_private: bool = False) -> list[Image.Image]:
    return [load_image(file, allow_private) for file in image_files]


def eval_model(args: argparse.Namespace) -> str:
    """Print the answer to `args.query` about `args.image_file`, and return it.

    args: needs `model_path`, `query`, `image_file`; other missing attributes get the flags' defaults. In the query,
        `<image-placeholder>` marks the position of a picture; without it pictures come first.

    Raises ValueError, one line, for a model, picture, template or pruner that cannot be used.
    """
    args = argparse.Namespace(**{**_defaults(), **_attributes(args)})
    images = load_images(image_parser(args), args.allow_private)
    checkpoint = load_checkpoint(args.model_path, args.model_base, args.conv_mode, args.device, args.dtype)
    generation = Generation(args.temperature, args.top_p, args.num_beams, args.max_new_tokens, args.seed)
    answerer = LlavaAnswerer(checkpoint, args.pruner, generation)
    torch.manual_seed(args.seed)
    [reply] = answerer([args.query], [images])
    print(reply.text)
    return reply.text


def _attributes(args: object) -> dict[str, object]:
    # LLaVA's own example passes an ad-hoc class, whose values are class attributes.
    return {name: getattr(args, name) for name in dir(args) if not name.startswith("_")}


def _defaults() -> dict[str, object]:
    return vars(build_parser().parse_args(["--model-path", "", "--image", "", "--query", ""]))


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    eval_model(args)


if __name__ == "__main__":
    main()
