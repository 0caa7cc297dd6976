"""Turn a delta into a whole checkpoint:

python -m llava.model.apply_delta --base-model-path LLAMA --target-model-path NEW --delta-path DELTA
"""

from __future__ import annotations

from flowcut.cli.command_line import Parser, parse_first, print_result, program


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--base-model-path", required=True, help="the language model that the delta was taken from")
    parser.add_argument("--target-model-path", required=True, help="folder to write")
    parser.add_argument("--delta-path", required=True, help="the delta: folder or Hub name")
    return parser


parse_first(__name__, build_parser)

import torch

from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import save_llava_checkpoint, written
from llava.model.source import stored_dtype


def apply_delta(base_model_path: str, target_model_path: str, delta_path: str) -> None:
    """Write base plus delta to the folder `target_model_path`, in the delta's type, with the delta's tokenizer.

    Raises ValueError, one line, when one of the two cannot be read or they do not match.
    """
    dtype = getattr(torch, stored_dtype(delta_path))
    # a name with "delta" marks a delta
    loaded = load_pretrained_model(delta_path, base_model_path, "delta", device="cpu", dtype=dtype, pruner="none")
    tokenizer, model, processor, _ = loaded
    save_llava_checkpoint(model, tokenizer, target_model_path, processor)


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    apply_delta(args.base_model_path, args.target_model_path, args.delta_path)
    print_result(written(args.target_model_path))


if __name__ == "__main__":
    main()
