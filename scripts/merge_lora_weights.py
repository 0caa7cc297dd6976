"""Merge a LoRA adapter into its base and write a plain checkpoint:

python scripts/merge_lora_weights.py --model-path LORA --model-base BASE --out MERGED
"""

from __future__ import annotations

from flowcut.cli.command_line import Parser, parse_first, print_result, program


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--model-path", required=True, help="folder of the adapter")
    parser.add_argument("--model-base", help="the model it was trained on; default: the one that its config names")
    parser.add_argument(
        "--out", also=["--save-model-path"], dest="save_model_path", required=True, help="folder to write"
    )
    return parser


parse_first(__name__, build_parser)

from llava.model.checkpoint import local_folder, written
from llava.model.consolidate import consolidate
from llava.model.lora import is_lora_folder, is_untrained


def merge(model_path: str, model_base: str | None, output: str) -> None:
    """Write base plus adapter to the folder `output`.

    Raises ValueError, one line, when one of them cannot be read, or when merging would change nothing.
    """
    folder = local_folder(model_path)
    if not is_lora_folder(folder):
        raise ValueError(f"{folder} has no LoRA adapter (adapter_config.json); give the adapter's folder")
    if is_untrained(folder):
        raise ValueError(f"merging the adapter in {folder} would change no weight: it was not trained; use the base")
    consolidate(model_path, output, model_base)


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    merge(args.model_path, args.model_base, args.save_model_path)
    print_result(written(args.save_model_path))


if __name__ == "__main__":
    main()
