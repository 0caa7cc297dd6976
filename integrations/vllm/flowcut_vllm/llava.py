"""LLaVA-1.5: vLLM's class, with a pruner on its own CLIP tower where the config names one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig
from vllm.config import VllmConfig
from vllm.model_executor.models.llava import (
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)

from flowcut.anatomy.reading import Projector, feature_layer
from flowcut.pruner import EncoderShape, Pruner
from flowcut_vllm.processor import served
from flowcut_vllm.pruned_model import PrunedImages, refuse_options
from flowcut_vllm.pruner import server_pruner
from flowcut_vllm.tower import PrunedTower, clip_encoder


def tower_fields(config: Any) -> dict[str, Any]:
    """What a LLaVA's config says about the use of its CLIP tower, for `Encoder` and `EncoderShape`.

    Raises:
        ValueError: the tower is no CLIP model.
    """
    vision = config.vision_config
    if not isinstance(vision, CLIPVisionConfig):
        raise ValueError(f"a {vision.model_type} as vision tower cannot be pruned in vLLM; only CLIP's can")
    return {
        "feature_layer": feature_layer(vision.num_hidden_layers, config.vision_feature_layer),
        "num_forwarded_special_tokens": int(config.vision_feature_select_strategy == "full"),
    }


def encoder_shape(config: Any) -> EncoderShape:
    """A LLaVA's CLIP tower in plain numbers; vLLM leaves out the layers after the one features are read from."""
    fields = tower_fields(config)
    depth = config.vision_config.num_hidden_layers
    present = fields["feature_layer"] + 1
    return EncoderShape("CLIPVisionModel", depth, present, num_prefix_tokens=1, merges_before_mlp=True, **fields)


class PrunedClip(PrunedImages):
    """Mixed in front of a LLaVA of vLLM's. Stock without a pruner in the config; with one, it is on the CLIP tower."""

    config: Any
    vision_tower: Any
    multi_modal_projector: Any

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        pruner = server_pruner(self.config)
        if pruner is not None:
            refuse_options(vllm_config)
            fields = {**tower_fields(self.config), "project": Projector(self.multi_modal_projector)}
            self.pruned = PrunedTower(pruner, clip_encoder(self.vision_tower, **fields))
            self.images_at_once = self.batch_limit(vllm_config, self.most_patches())

    def most_patches(self) -> int:
        """How many patches an image has at most, those of all its tiles together."""
        return int(self.vision_tower.vision_model.embeddings.num_patches)


@served(encoder_shape, info=LlavaProcessingInfo, processor=LlavaMultiModalProcessor)
class PrunedLlava(PrunedClip, LlavaForConditionalGeneration):
    """LLaVA-1.5. With a pruner, `embed_multimodal` gives each image its budget of tokens."""

    def encode(self, pruner: Pruner, images: Sequence[Tensor]) -> list[Tensor]:
        assert self.pruned is not None
        pixels = torch.stack(list(images))
        rows, _ = self.pruned.run(pruner, lambda: self.vision_tower(pixels, feature_select_strategy="full"))
        features = self.multi_modal_projector(torch.cat(rows))
        return list(features.split([len(row) for row in rows]))
