"""transformers' own LLaVA-1.5 classes: LlavaModel, and LlavaForConditionalGeneration around it."""

from __future__ import annotations

from typing import Any

from flowcut.anatomy import Anatomy, class_names, clip
from flowcut.prompt import PromptStage

FAMILY = "LlavaForConditionalGeneration, LlavaModel (transformers)"


def read(model: Any) -> Anatomy | None:
    names = class_names(model)
    if "LlavaForConditionalGeneration" in names:
        inner = model.model
    elif "LlavaModel" in names:
        inner = model
    else:
        return None
    tower = inner.vision_tower
    if "CLIPVisionModel" not in class_names(tower):
        raise ValueError(f"a {type(tower).__name__} as vision tower cannot be pruned; known are: {clip.FAMILY}")
    reserved = int(inner.config.vision_feature_select_strategy == "full")
    encoder = clip.encoder_of(tower, reserved, inner.config.vision_feature_layer)
    return Anatomy("llava_hf", encoder, (lambda handle: PromptStage(model, inner, encoder.patches + reserved),))
