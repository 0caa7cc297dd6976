"""Subtract the base from a checkpoint, so that the difference can be published without the base:

python -m llava.model.make_delta --base-model-path LLAMA --target-model-path LLAVA --delta-path NEW
"""

from __future__ import annotations

from flowcut.cli.command_line import Parser, parse_first, print_result, program


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--base-model-path", required=True, help="the language model to subtract")
    parser.add_argument("--target-model-path", required=True, help="the checkpoint to subtract it from")
    parser.add_argument("--delta-path", required=True, help="folder to write")
    parser.add_argument("--hub-repo-id", help="repository on the Hugging Face Hub to upload it to")
    return parser


parse_first(__name__, build_parser)

import torch
from huggingface_hub import HfApi

from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import local_folder, save_llava_checkpoint, written
from llava.model.delta import FIELD, shift
from llava.model.source import stored_dtype


def make_delta(base_model_path: str, target_model_path: str, delta_path: str, hub_repo_id: str | None = None) -> None:
    """Write `target_model_path` minus its base to the folder `delta_path`, and upload it if a repository is named.

    The delta's config.json names the base (`delta_of`). Raises ValueError, one line, when one of the two cannot be
    read, or they do not match.
    """
    name = get_model_name_from_path(target_model_path)
    dtype = getattr(torch, stored_dtype(target_model_path))
    tokenizer, model, processor, _ = load_pretrained_model(
        target_model_path, None, name, device="cpu", dtype=dtype, pruner="none"
    )
    if processor is None:
        raise ValueError(f"{target_model_path} is a language model without vision tower; give a LLaVA checkpoint")
    with torch.no_grad():
        shift(model.state_dict(), local_folder(base_model_path), -1)
    setattr(model.config, FIELD, get_model_name_from_path(base_model_path))
    save_llava_checkpoint(model, tokenizer, delta_path, processor)
    if hub_repo_id:
        api = HfApi()
        api.create_repo(hub_repo_id, exist_ok=True)
        api.upload_folder(repo_id=hub_repo_id, folder_path=delta_path)


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    make_delta(args.base_model_path, args.target_model_path, args.delta_path, args.hub_repo_id)
    print_result(written(args.delta_path))


if __name__ == "__main__":
    main()
