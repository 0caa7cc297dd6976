"""The inputs of the FLOPs formulas for a model, from its checkpoint's config only: no weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig

from llava.eval.efficiency.answer_costs import ModelSizes
from llava.eval.models.load import fits_llava_classes
from llava.mm_utils import get_model_name_from_path
from llava.model.language_model.llava_llama import LlavaConfig
from llava.model.language_model.llava_mistral import LlavaMistralConfig
from llava.model.multimodal_encoder.clip_encoder import locate_tower, tower_config
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.source import find_source


def sizes_in(folder: Path, base: str | None = None) -> ModelSizes | None:
    """The inputs of the formulas for a checkpoint in LLaVA's layout, or in transformers' layout of the same models.

    base: folder or Hub name of the base of an adapter or a projector. Returns None for transformers' other models,
    which have no formula yet.

    Raises ValueError, one line, when files of the checkpoint are missing.
    """
    if base is None and not fits_llava_classes(str(folder)):
        return None
    source = find_source(str(folder), base, get_model_name_from_path(str(folder)))
    family = str((source.fields.get("architectures") or [source.fields.get("model_type")])[0]).lower()
    language: Any = (LlavaMistralConfig if "mistral" in family else LlavaConfig).from_dict(source.fields)
    with torch.device("meta"):
        projector = build_vision_projector(language)
    depth = sum(isinstance(part, nn.Linear) for part in projector.modules())
    return ModelSizes(_vision(source.fields, source.folder), language, depth)


def _vision(fields: Mapping[str, Any], folder: Path) -> Any:
    own = fields.get("mm_vision_tower_config")
    if own:
        return CLIPVisionConfig.from_dict(own)
    return tower_config(locate_tower(str(fields["mm_vision_tower"]), str(folder)))
