"""This project's own llava classes: a LlamaForCausalLM (or kin) with `get_vision_tower()`.

Their splice takes whatever number of features the tower returns, so the encoder is all there is to attach to. They are
told by what they have, not by import: flowcut does not depend on llava.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from flowcut.anatomy import Anatomy, class_names, clip

FAMILY = "LlavaLlamaForCausalLM (llava)"


def read(model: Any) -> Anatomy | None:
    if not callable(getattr(model, "get_vision_tower", None)):
        return None
    tower = model.get_vision_tower()
    if tower is None:
        raise ValueError(f"{type(model).__name__} has no vision tower (config.mm_vision_tower is not set)")
    encoder = getattr(tower, "vision_tower", None)
    if encoder is None:
        raise ValueError(f"the vision tower of {type(model).__name__} is not loaded; call its load_model() first")
    if not isinstance(encoder, nn.Module) or "CLIPVisionModel" not in class_names(encoder):
        raise ValueError(f"a {type(encoder).__name__} as vision tower cannot be pruned; known are: {clip.FAMILY}")
    if str(getattr(model.config, "image_aspect_ratio", None)).startswith("anyres"):
        raise ValueError("image_aspect_ratio='anyres' (LLaVA-NeXT) cannot be pruned yet; LLaVA-1.5 models can")
    reserved = int(tower.select_feature == "cls_patch")
    return Anatomy("llava", clip.encoder_of(encoder, reserved, tower.select_layer))
