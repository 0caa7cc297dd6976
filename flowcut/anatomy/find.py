"""Finding out what a model is: each family's file is asked in turn."""

from __future__ import annotations

from torch import nn

from flowcut.anatomy import (
    clip,
    dinov2,
    gemma3_hf,
    glm4v,
    internvl_hf,
    llava,
    llava_hf,
    llava_next_hf,
    qwen2_vl,
    qwen3_5,
    qwen3_vl,
    siglip,
    smolvlm_hf,
    video_llava_hf,
)
from flowcut.anatomy.reading import unwrap
from flowcut.hooks.parts import Anatomy

FAMILIES = (
    *(clip, dinov2, siglip),
    *(llava_hf, llava_next_hf, video_llava_hf),
    *(qwen2_vl, qwen3_vl, qwen3_5, glm4v),
    *(internvl_hf, smolvlm_hf, gemma3_hf),
    llava,
)
"""Modules with `FAMILY`, what it is called, and `read(model)`, its anatomy or None."""


def anatomy_of(model: nn.Module) -> Anatomy:
    """Find out what a model is. Wrappers of PEFT, accelerate, DDP, DeepSpeed and torch.compile are looked through.

    Raises:
        ValueError: no known family, or a member of one that lacks a part.
    """
    model = unwrap(model)
    for family in FAMILIES:
        anatomy = family.read(model)
        if anatomy is not None:
            return anatomy
    known = "; ".join(family.FAMILY for family in FAMILIES)
    raise ValueError(f"{type(model).__name__} is not a model family that can be pruned; known are: {known}")
