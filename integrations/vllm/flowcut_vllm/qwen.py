"""What pruned Qwen-VL models have in common. One-stage, images only.

Every kept token has its own M-RoPE position. Where an image stands in the prompt and what follows it is known when the
request arrives; which row and column a kept token has is known after the encoder. So the encoder's output brings them
along in further columns, in which vLLM's model runners look for positions (they do so for the pruning of videos). In
Qwen3-VL these columns follow those of DeepStack, which are a token's own too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.config import VllmConfig

from flowcut.pruner import EncoderShape, Pruner
from flowcut_vllm.mrope import NUMBERS, digits, place_kept_tokens, text_positions
from flowcut_vllm.pruned_model import PrunedImages, refuse_options
from flowcut_vllm.pruner import server_pruner
from flowcut_vllm.qwen_tower import QwenTower


def encoder_shape(config: Any) -> EncoderShape:
    """A Qwen-VL's vision encoder in plain numbers."""
    vision = config.vision_config
    return EncoderShape(
        type(vision).__name__.removesuffix("Config"),
        vision.depth,
        vision.depth,
        patches_per_token=vision.spatial_merge_size**2,
        feature_layer=vision.depth - 1,
        last_layer=-1,
        windowed=hasattr(vision, "window_size"),
        tapped=bool(getattr(vision, "deepstack_visual_indexes", ())),
    )


class PrunedQwen(PrunedImages):
    """Mixed in front of vLLM's class. Stock without a pruner in the config."""

    config: Any
    multimodal_config: Any
    visual: Any

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        pruner = server_pruner(vllm_config.model_config.hf_config)
        if pruner is not None:
            refuse_options(vllm_config)
            refuse_qwen_options(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        if pruner is not None:
            # What makes vLLM's runners ask the model for positions; there are no videos of which this share could go.
            self.supports_multimodal_pruning = True
            self.multimodal_config.video_pruning_rate = 1e-9
            self.pruned = QwenTower(pruner, self.visual)

    def images_of(self, inputs: dict[str, Any]) -> Sequence[Any]:
        grids = inputs["image_grid_thw"]
        pixels = inputs["pixel_values"].split(grids.prod(-1).tolist())
        return list(zip(pixels, grids.tolist(), strict=True))

    def encode(self, pruner: Pruner, images: Sequence[Any]) -> list[Tensor]:
        """Images -> for each [k, D (1 + taps of DeepStack) + columns of `digits`]."""
        assert isinstance(self.pruned, QwenTower)
        pixels, grids = torch.cat([pixels for pixels, _ in images]), [grid for _, grid in images]
        states, trace = self.pruned.forward(pruner, lambda: self.visual(pixels, grid_thw=grids))
        side = self.visual.spatial_merge_size
        wholes = states.split([grid[1] * grid[2] // side**2 for grid in grids])
        found = []
        for whole, kept, (_, height, width) in zip(wholes, trace.final, grids, strict=True):
            places = kept[:: side**2].to(whole.device) // side**2
            first = torch.arange(len(places), device=whole.device)
            tokens = whole[places if pruner.keeps_groups else first]
            located = places if pruner.keeps_position_ids else first
            rows, columns = located // (width // side), located % (width // side)
            room = torch.full_like(places, max(height, width) // side)
            found.append(torch.cat([tokens, digits(torch.stack([rows, columns, room], dim=1), tokens)], dim=1))
        return found

    def get_mrope_input_positions(self, input_tokens: Any, mm_features: Any) -> tuple[Tensor, int]:
        if self.pruned is None:
            return super().get_mrope_input_positions(input_tokens, mm_features)  # type: ignore[misc]
        side = self.visual.spatial_merge_size
        images = []
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            _, height, width = feature.data["image_grid_thw"].data.tolist()
            images.append((feature.mm_position.offset, feature.mm_position.length, max(height, width) // side))
        text, following = text_positions(len(input_tokens), images)
        positions: Any = torch.from_numpy(np.repeat(text[None], 3, axis=0))
        positions.following = following
        return positions, following - len(input_tokens)

    def recompute_mrope_positions(
        self, input_ids: Any, multimodal_embeddings: Any, mrope_positions: Any, num_computed_tokens: int
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        if self.pruned is None:
            return super().recompute_mrope_positions(  # type: ignore[misc]
                input_ids, multimodal_embeddings, mrope_positions, num_computed_tokens
            )
        width = 2 * NUMBERS
        brought = [tokens[:, -width:] for tokens in multimodal_embeddings]
        ids = torch.as_tensor(input_ids, device=mrope_positions.device)
        positions, following = place_kept_tokens(
            mrope_positions, ids == self.config.image_token_id, brought, num_computed_tokens
        )
        # vLLM's first model runner asks again while the answer is written, when an image at the prompt's end is no
        # longer brought. It keeps the tensor that it got; the second runner, which copies it, does not ask then.
        following = getattr(mrope_positions, "following", following)
        return [tokens[:, :-width] for tokens in multimodal_embeddings], positions, following - len(ids)


def refuse_qwen_options(vllm_config: Any) -> None:
    """Raise ValueError, one line, for options of vLLM that a pruned Qwen-VL does not go with."""
    images = vllm_config.model_config.multimodal_config
    if images.mm_encoder_tp_mode == "data":
        raise ValueError("a pruned Qwen-VL does not run with --mm-encoder-tp-mode data; leave it out")
    if images.enable_mm_embeds:
        raise ValueError("a pruned Qwen-VL takes no embeddings in the place of images; leave --enable-mm-embeds out")
    if images.video_pruning_rate:
        raise ValueError("a pruned Qwen-VL takes images alone; leave --video-pruning-rate out")
    if vllm_config.speculative_config is not None:
        raise ValueError("a pruned Qwen-VL does not run with speculative decoding; leave it out")
