"""Qwen2.5-VL: vLLM's class, with a pruner on its own tower where the config names one. One-stage, images only.

Every kept token has its own M-RoPE position. Where an image stands in the prompt and what follows it is known when the
request arrives; which row and column a kept token has is known after the encoder. So the encoder's output brings them
along in further columns, in which vLLM's model runners look for positions (they do so for the pruning of videos).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from flowcut.pruner import EncoderShape, Pruner
from flowcut_vllm.mrope import NUMBERS, digits, place_kept_tokens, text_positions
from flowcut_vllm.processor import PrunedInfo, PrunedProcessor
from flowcut_vllm.pruned_model import PrunedImages, refuse_options
from flowcut_vllm.pruner import check_served, server_pruner
from flowcut_vllm.qwen_tower import QwenTower

_STOCK: Any = Qwen2_5_VLForConditionalGeneration._processor_factory


class PrunedQwenInfo(PrunedInfo, Qwen2_5_VLProcessingInfo):
    """Counts of tokens, with the server's pruner."""


class PrunedQwenProcessor(PrunedProcessor, Qwen2_5_VLMultiModalProcessor):
    """As many placeholders as tokens are kept."""

    per_image = "image_grid_thw"


def _info(ctx: Any) -> Any:
    pruner = server_pruner(ctx.model_config.hf_config)
    if pruner is None:
        return _STOCK.info(ctx)
    vision = ctx.model_config.hf_config.vision_config
    depth, size = vision.depth, vision.spatial_merge_size**2
    shape = EncoderShape(
        "Qwen2_5_VisionTransformer", depth, depth, patches_per_token=size, feature_layer=depth - 1, last_layer=-1
    )
    check_served(pruner, shape)
    return PrunedQwenInfo(ctx)


def _processor(info: Any, dummy_inputs: Any) -> Any:
    pruned = isinstance(info, PrunedQwenInfo)
    return PrunedQwenProcessor(info, dummy_inputs) if pruned else _STOCK.processor(info, dummy_inputs)


@MULTIMODAL_REGISTRY.register_processor(_processor, info=_info, dummy_inputs=_STOCK.dummy_inputs)
class PrunedQwen2_5_VL(PrunedImages, Qwen2_5_VLForConditionalGeneration):
    """Stock without a pruner in the config. With one, `embed_multimodal` gives each image its budget of tokens."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        pruner = server_pruner(vllm_config.model_config.hf_config)
        if pruner is not None:
            refuse_options(vllm_config)
            _refuse(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if pruner is not None:
            # What makes vLLM's runners ask the model for positions; there are no videos of which this share could go.
            self.multimodal_config.video_pruning_rate = 1e-9
            self.pruned = QwenTower(pruner, self.visual)

    def images_of(self, inputs: dict[str, Any]) -> Sequence[Any]:
        grids = inputs["image_grid_thw"]
        pixels = inputs["pixel_values"].split(grids.prod(-1).tolist())
        return list(zip(pixels, grids.tolist(), strict=True))

    def encode(self, pruner: Pruner, images: Sequence[Any]) -> list[Tensor]:
        assert isinstance(self.pruned, QwenTower)
        pixels, grids = torch.cat([pixels for pixels, _ in images]), [grid for _, grid in images]
        states, trace = self.pruned.forward(pruner, lambda: self.visual(pixels, grid_thw=grids))
        side = self.visual.spatial_merge_size
        wholes = states.split([grid[1] * grid[2] // side**2 for grid in grids])
        found = []
        for whole, kept, (_, height, width) in zip(wholes, trace.final, grids, strict=True):
            places = kept[:: side**2].to(whole.device) // side**2
            rows, columns = places // (width // side), places % (width // side)
            room = torch.full_like(places, max(height, width) // side)
            found.append(torch.cat([whole[places], digits(torch.stack([rows, columns, room], dim=1), whole)], dim=1))
        return found

    def get_mrope_input_positions(self, input_tokens: Any, mm_features: Any) -> tuple[Tensor, int]:
        if self.pruned is None:
            return super().get_mrope_input_positions(input_tokens, mm_features)
        side = self.visual.spatial_merge_size
        images = []
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            _, height, width = feature.data["image_grid_thw"].data.tolist()
            images.append((feature.mm_position.offset, feature.mm_position.length, max(height, width) // side))
        positions, following = text_positions(len(input_tokens), images)
        return torch.from_numpy(np.repeat(positions[None], 3, axis=0)), following - len(input_tokens)

    def recompute_mrope_positions(
        self, input_ids: Any, multimodal_embeddings: Any, mrope_positions: Any, num_computed_tokens: int
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        if self.pruned is None:
            return super().recompute_mrope_positions(
                input_ids, multimodal_embeddings, mrope_positions, num_computed_tokens
            )
        width = 2 * NUMBERS
        brought = [tokens[:, -width:] for tokens in multimodal_embeddings]
        ids = torch.as_tensor(input_ids, device=mrope_positions.device)
        positions, following = place_kept_tokens(
            mrope_positions, ids == self.config.image_token_id, brought, num_computed_tokens
        )
        return [tokens[:, :-width] for tokens in multimodal_embeddings], positions, following - len(ids)


def _refuse(vllm_config: Any) -> None:
    images = vllm_config.model_config.multimodal_config
    if images.mm_encoder_tp_mode == "data":
        raise ValueError("a pruned Qwen2.5-VL does not run with --mm-encoder-tp-mode data; leave it out")
    if images.enable_mm_embeds:
        raise ValueError("a pruned Qwen2.5-VL takes no embeddings in the place of images; leave --enable-mm-embeds out")
    if images.video_pruning_rate:
        raise ValueError("a pruned Qwen2.5-VL takes images alone; leave --video-pruning-rate out")
    if vllm_config.speculative_config is not None:
        raise ValueError("a pruned Qwen2.5-VL does not run with speculative decoding; leave it out")
