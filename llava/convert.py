"""Convert a checkpoint between LLaVA's layout and that of transformers' own classes, either way.

python -m llava.convert --to hf    --model-path liuhaotian/llava-v1.5-7b  --out llava-1.5-7b-hf
python -m llava.convert --to llava --model-path llava-hf/llava-1.5-7b-hf --out llava-v1.5-7b

Anything that `load_pretrained_model` reads can be converted; a LoRA adapter or a projector needs --model-base and
is merged. The weights are unchanged, so the logits are equal. --verify compares them on a picture of noise, and the
tokens and answers that both give to text prompts.

The tokenizer's file is written so that transformers' processor gives the same tokens as LLaVA, which tokenises the text
after a picture by itself. For anyres pictures that two canvases fit equally well, transformers uses the transposed
canvas.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from flowcut.cli.command_line import Parser, parse_first, print_result, program
from llava.chat_template import chat_template
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import conversation_mode
from llava.model.chunked_tokenizer import tokenize_between_pictures
from llava.model.legacy_config import older_names


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--to", required=True, choices=("hf", "llava"), help="layout to write; hf is transformers'")
    parser.add_argument(
        "--model-path", also=["--src"], required=True, help="checkpoint to read: folder or Hub name, either layout"
    )
    parser.add_argument("--model-base", help="base of a LoRA adapter, a projector or a delta")
    parser.add_argument("--out", also=["--output", "--dst"], dest="output", required=True, help="folder to write")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: as stored")
    parser.add_argument("--verify", action="store_true", help="load both, compare logits and answers")
    return parser


parse_first(__name__, build_parser)

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import AddedToken
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

from llava.conversion_check import compare
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import read_config, save_llava_checkpoint, written_aside
from llava.model.source import stored_dtype
from llava.model.transformers_layout import to_hub_name, transformers_config

PAD_TOKEN = "<pad>"
_ROWS = 64  # the vocabulary grows to a multiple of this, as in the checkpoints on the Hub


def convert(model_path: str, model_base: str | None, to: str, output: str, dtype: str | None = None) -> None:
    """Write the checkpoint `model_path` to the folder `output` in the layout `to`, "hf" or "llava".

    dtype: "float16" and so on; default: the type in which the checkpoint is stored.

    Raises ValueError, one line, when it cannot be read or has no counterpart in the other layout.
    """
    stored = getattr(torch, dtype or stored_dtype(model_path, model_base))
    tokenizer, model, image_processor, _ = load_pretrained_model(
        model_path, model_base, get_model_name_from_path(model_path), device="cpu", dtype=stored, pruner="none"
    )
    if image_processor is None:
        raise ValueError(f"{model_path} is a language model without vision tower; there is nothing to convert")
    if to == "hf":
        mode = conversation_mode(model_path, getattr(model.config, "conv_version", None))
        save_transformers_checkpoint(model, tokenizer, image_processor, output, mode)
    else:
        save_llava_checkpoint(model, tokenizer, output, image_processor)


def save_transformers_checkpoint(
    model: Any, tokenizer: Any, image_processor: Any, output: str | Path, mode: str = "llava_v1"
) -> None:
    """Write a LLaVA model as a checkpoint of `LlavaForConditionalGeneration` or `LlavaNextForConditionalGeneration`.

    The vocabulary gets `<image>` and `<pad>` and is padded with rows that equal the mean row. mode: name of the
    conversation template for the chat template.

    Raises ValueError, one line, for what transformers' classes cannot express.
    """
    words = len(tokenizer)
    rows = -(-(words + 2) // _ROWS) * _ROWS
    tower = model.get_vision_tower()
    config = transformers_config(model.config, tower.config, rows, image_token=words, pad_token=words + 1)
    config.dtype = config.text_config.dtype = model.dtype
    weights = {
        to_hub_name(name): _grown(value, rows) if name.endswith(("embed_tokens.weight", "lm_head.weight")) else value
        for name, value in model.state_dict().items()
    }
    with written_aside(Path(output)) as folder:
        save_torch_state_dict({name: value.contiguous() for name, value in weights.items()}, folder)
        config.save_pretrained(folder)
        fields = read_config(folder)
        fields["text_config"] |= older_names(fields["text_config"])
        fields |= older_names(fields)
        (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", "utf-8")
        generation = model.generation_config
        generation.pad_token_id = words + 1
        generation.save_pretrained(folder)
        source = Path(tokenizer.name_or_path) / "tokenizer.model"
        processor = _processor(config, tokenizer, image_processor, mode)
        processor.save_pretrained(folder)
        processor.image_processor.save_pretrained(folder)  # under the name that programs before transformers 5 read
        settings = folder / "tokenizer_config.json"
        kept = {
            "legacy": bool(getattr(tokenizer, "legacy", False)),
            "add_bos_token": True,
        }  # omitted by transformers 5
        settings.write_text(json.dumps(json.loads(settings.read_text("utf-8")) | kept, indent=2) + "\n", "utf-8")
        if source.is_file():
            shutil.copyfile(source, folder / source.name)
        tokenize_between_pictures(folder / "tokenizer.json", image=words)


def _grown(table: Tensor, rows: int) -> Tensor:
    mean = table.float().mean(dim=0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(rows - len(table), -1)])


def _processor(config: Any, tokenizer: Any, image_processor: Any, mode: str) -> Any:
    added = [AddedToken(token, special=True, normalized=False) for token in (DEFAULT_IMAGE_TOKEN, PAD_TOKEN)]
    tokenizer.add_tokens(added, special_tokens=True)
    tokenizer.pad_token = PAD_TOKEN
    tokenizer.padding_side = "left"
    pictures: dict[str, Any] = {
        "size": dict(image_processor.size),
        "crop_size": dict(image_processor.crop_size),
        "image_mean": list(image_processor.image_mean),
        "image_std": list(image_processor.image_std),
    }
    shared: dict[str, Any] = {
        "tokenizer": tokenizer,
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": 1,
        "chat_template": chat_template(mode),
    }
    if config.model_type == "llava_next":
        grids = config.image_grid_pinpoints
        return LlavaNextProcessor(LlavaNextImageProcessorPil(image_grid_pinpoints=grids, **pictures), **shared)
    pad = config.image_aspect_ratio == "pad"
    return LlavaProcessor(LlavaImageProcessorPil(do_pad=pad, **pictures), **shared)


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    convert(args.model_path, args.model_base, args.to, args.output, args.dtype)
    print(f"wrote {args.output}")
    made: dict[str, Any] = {"out": args.output, "layout": args.to}
    if args.verify:
        found = compare(args.model_path, args.model_base, args.output)
        print(f"largest difference of logits in float32: {found.logits}")
        for line in found.lines():
            print(line)
        made["largest_difference"] = found.logits
    print_result(made)


if __name__ == "__main__":
    main()
