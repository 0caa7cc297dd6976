"""This project's own llava classes: a LlamaForCausalLM (or kin) with `get_vision_tower()`.

Their splice takes whatever number of features the tower returns and tells the language model which positions are
visual (`image_index`), so there are no placeholders to drop. They are told by what they have, not by import:
flowcut does not depend on llava.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from flowcut.anatomy.reading import Projector, class_names, copies, feature_layer, language_model
from flowcut.anatomy.towers import vision_encoder
from flowcut.hooks.parts import Anatomy

FAMILY = "LlavaLlamaForCausalLM, LlavaMistralForCausalLM (llava)"


def read(model: Any) -> Anatomy | None:
    if not callable(getattr(model, "get_vision_tower", None)):
        return None
    tower = model.get_vision_tower()
    if tower is None:
        raise ValueError(f"{type(model).__name__} has no vision tower (config.mm_vision_tower is not set)")
    encoders = [encoder for each in copies(tower) for encoder in copies(getattr(each, "vision_tower", None))]
    if encoders[0] is None:
        raise ValueError(f"the vision tower of {type(model).__name__} is not loaded; call its load_model() first")
    if not isinstance(encoders[0], nn.Module):
        raise ValueError(f"a {type(encoders[0]).__name__} as vision tower cannot be pruned")
    two_stage = str(getattr(model.config, "image_aspect_ratio", None)).startswith("anyres")
    body = model.get_model() if callable(getattr(model, "get_model", None)) else model
    fields: dict[str, Any] = {
        "num_forwarded_special_tokens": int(tower.select_feature == "cls_patch"),
        "feature_layer": feature_layer(vision_encoder(encoders[0]).depth, tower.select_layer),
        "two_stage": two_stage,
        "project": Projector(body.mm_projector),
    }
    described = tuple(vision_encoder(encoder, **fields) for encoder in encoders)
    head = model if "GenerationMixin" in class_names(model) else None
    # The splice pads rows itself, so columns counted from the end mean nothing to its callers.
    decoder = language_model(body, head, from_start=True)
    return Anatomy("llava", described, **decoder, two_stage=two_stage)
