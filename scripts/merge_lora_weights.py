"""Merge a LoRA adapter into its base and write a plain checkpoint:

python scripts/merge_lora_weights.py --model-path LORA --model-base BASE --save-model-path MERGED
"""

from __future__ import annotations

import argparse

from llava.given import told_in_one_line
from llava.model.consolidate import consolidate


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", required=True, help="folder of the adapter")
    parser.add_argument("--model-base", help="the model it was trained on; default: the one that its config names")
    parser.add_argument("--save-model-path", required=True, help="folder to write")
    args = parser.parse_args(argv)
    with told_in_one_line():
        consolidate(args.model_path, args.save_model_path, args.model_base)


if __name__ == "__main__":
    main()
