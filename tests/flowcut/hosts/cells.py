"""transformers' families where a square of patches becomes one token: InternVL, SmolVLM, Gemma 3."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    Qwen2Config,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMVisionConfig,
)

from .base import (
    IMAGE,
    IMAGE_TOKEN,
    PATCHES,
    TEXT,
    VISION,
    Sample,
    noise,
)
from .llava_hf import HFLlava


class HFInternVL(HFLlava):
    """transformers' InternVLForConditionalGeneration: tiles of 12 x 12 patches, of which 2 x 2 make a token."""

    name = "internvl"
    merges = False
    tiled = True

    def config(self) -> Any:
        return InternVLConfig(
            vision_config=InternVLVisionConfig(**{**VISION, "patch_size": 2}),
            text_config=Qwen2Config(**TEXT),
            image_token_id=IMAGE_TOKEN,
        )

    def new(self, config: Any) -> Any:
        return InternVLForConditionalGeneration(config)

    def tiles(self, image: int) -> int:
        return [1, 3, 1, 2][image % 4]

    def placeholders(self, image: int) -> int:
        return PATCHES * self.tiles(image)

    def media(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        images = [image for sample in samples for image in sample.images]
        if not images:
            return {}
        return {"pixel_values": torch.cat([noise(image, self.tiles(image), 3, 24, 24) for image in images])}

    def layers(self, model: Any) -> Any:
        return model.model.vision_tower.encoder.layer


class HFSmolVLM(HFInternVL):
    """transformers' SmolVLMForConditionalGeneration: tiles with text between them, and no CLS token."""

    name = "smolvlm"
    prefix = 0

    def config(self) -> Any:
        return SmolVLMConfig(
            vision_config=SmolVLMVisionConfig(**{**VISION, "patch_size": 2}),
            text_config=LlamaConfig(**TEXT),
            image_token_id=IMAGE_TOKEN,
            scale_factor=2,
        )

    def new(self, config: Any) -> Any:
        return SmolVLMForConditionalGeneration(config)

    def row(self, sample: Sample) -> list[int]:
        """As the processor writes it: every tile opened and named, the last one by a name that all pictures end on."""
        images, row = iter(sample.images), []
        for token in sample.prompt:
            if token != IMAGE:
                row.append(token)
                continue
            for tile in reversed(range(self.tiles(next(images)))):
                row += [97, 80 + tile, *[IMAGE_TOKEN] * PATCHES]
            row.append(97)
        return row

    def text(self, sample: Sample) -> int:
        return super().text(sample) + sum(2 * self.tiles(image) + 1 for image in sample.images)

    def media(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        """Rows without as many tiles as the longest are filled with tiles of zeros."""
        rows = [
            torch.cat([noise(image, self.tiles(image), 3, 24, 24) for image in sample.images])
            if sample.images
            else torch.zeros(0, 3, 24, 24)
            for sample in samples
        ]
        return {"pixel_values": pad_sequence(rows, batch_first=True)} if any(map(len, rows)) else {}

    def tower(self, model: Any) -> Any:
        return model.model.vision_model

    def layers(self, model: Any) -> Any:
        return model.model.vision_model.encoder.layers

    def decoder(self, model: Any) -> Any:
        return model.model.text_model


class HFGemma3(HFLlava):
    """transformers' Gemma3ForConditionalGeneration: 2 x 2 patches averaged, images that attend in both directions."""

    name = "gemma3"
    prefix = 0
    merges = False
    window = 16

    def config(self) -> Any:
        text = {**TEXT, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": self.window}
        return Gemma3Config(
            vision_config=SiglipVisionConfig(**{**VISION, "patch_size": 2}, vision_use_head=False),
            text_config=Gemma3TextConfig(**text, layer_types=["sliding_attention", "full_attention"] * 2),
            image_token_index=IMAGE_TOKEN,
            mm_tokens_per_image=PATCHES,
        )

    def new(self, config: Any) -> Any:
        return Gemma3ForConditionalGeneration(config)

    def types(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"token_type_ids": (ids == IMAGE_TOKEN).int()}
