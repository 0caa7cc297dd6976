"""The optional tokens around and for images: `<im_patch>`, `<im_start>`, `<im_end>`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from llava.model.partitioned import whole


def add_vision_tokens(model: Any, tokenizer: Any) -> None:
    """Add the tokens that a checkpoint's config requires; the embeddings grow only if the tokenizer is larger.

    `<im_patch>` is required by default: early checkpoints relied on that.
    """
    if getattr(model.config, "mm_use_im_patch_token", True):
        tokenizer.add_tokens([DEFAULT_IMAGE_PATCH_TOKEN], special_tokens=True)
    if getattr(model.config, "mm_use_im_start_end", False):
        tokenizer.add_tokens([DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN], special_tokens=True)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))


def add_vision_tokens_for_training(model: Any, model_args: Any, tokenizer: Any) -> None:
    """Add the tokens that the arguments request, with embedding rows to train.

    model_args: `mm_use_im_patch_token`, `mm_use_im_start_end`, `tune_mm_mlp_adapter`, `pretrain_mm_mlp_adapter`.
    The rows of `<im_start>` and `<im_end>` begin as the mean of all others, or as the adapter file has them.

    Raises ValueError when the adapter file's embedding has neither all rows nor just the new ones.
    """
    if model_args.mm_use_im_patch_token:
        tokenizer.add_tokens([DEFAULT_IMAGE_PATCH_TOKEN], special_tokens=True)
        model.resize_token_embeddings(len(tokenizer))
    if model_args.mm_use_im_start_end:
        added = tokenizer.add_tokens([DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN], special_tokens=True)
        model.resize_token_embeddings(len(tokenizer))
        tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
        with whole(tables, write=True):
            for table in tables if added else []:
                table.data[-added:] = table.data[:-added].mean(dim=0, keepdim=True)
            if model_args.pretrain_mm_mlp_adapter and added:
                _read_new_rows(model_args.pretrain_mm_mlp_adapter, tables[0].data, added)
    if model_args.tune_mm_mlp_adapter and (model_args.mm_use_im_start_end or model_args.mm_use_im_patch_token):
        model.get_input_embeddings().requires_grad_(model_args.mm_use_im_start_end)
        model.get_output_embeddings().requires_grad_(False)


def _read_new_rows(adapter: str, table: Tensor, added: int) -> None:
    name = "model.embed_tokens.weight"
    rows = torch.load(adapter, map_location="cpu", weights_only=True).get(name)
    if rows is None or rows.shape[0] not in (added, len(table)) or rows.shape[1] != table.shape[1]:
        found = "no rows" if rows is None else f"shape {tuple(rows.shape)}"
        raise ValueError(
            f"{adapter} has {found} for {name}; expected {added} or {len(table)} rows of {table.shape[1]}, from a "
            f"pre-training run with --mm_use_im_start_end True"
        )
    table[-added:] = rows[-added:].to(table)
