"""Write a checkpoint as one whole: python -m llava.model.consolidate --model-path CHECKPOINT --out FOLDER

Shards, a LoRA adapter or a delta (with --model-base) become one plain checkpoint in LLaVA's layout, stored in the type
of the source. A frozen vision tower is left out and named in the config; a trained one is included.
"""

from __future__ import annotations

from flowcut.cli.command_line import Parser, parse_first, print_result, program


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--model-path", also=["--src"], dest="src", required=True, help="checkpoint to read")
    parser.add_argument("--out", also=["--dst"], dest="dst", required=True, help="folder to write")
    parser.add_argument(
        "--model-base", also=["--base"], dest="base", help="base model of an adapter, a projector or a delta"
    )
    return parser


parse_first(__name__, build_parser)

import torch

from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import save_llava_checkpoint, written
from llava.model.source import stored_dtype


def consolidate(src: str, dst: str, base: str | None = None) -> None:
    """Write the checkpoint `src` (on `base`, if it needs one) to the folder `dst`.

    Raises ValueError, one line, when it cannot be read or is a language model only.
    """
    name = get_model_name_from_path(src)
    dtype = getattr(torch, stored_dtype(src, base))
    tokenizer, model, processor, _ = load_pretrained_model(src, base, name, device="cpu", dtype=dtype, pruner="none")
    if processor is None:
        raise ValueError(f"{src} is a language model without vision tower; give a LLaVA checkpoint")
    save_llava_checkpoint(model, tokenizer, dst, processor)


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    consolidate(args.src, args.dst, args.base)
    print_result(written(args.dst))


if __name__ == "__main__":
    main()
