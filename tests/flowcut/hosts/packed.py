"""transformers' families whose encoder gets the patches of all images as one sequence: Qwen-VL and GLM-V."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
    Glm46VConfig,
    Glm46VForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from .base import (
    DEPTH,
    IMAGE,
    IMAGE_TOKEN,
    SAMPLES,
    TEXT,
    VIDEO,
    VIDEO_SAMPLES,
    VIDEO_TOKEN,
    Sample,
    noise,
)
from .llava_hf import HFLlava

PACKED_VISION = {
    "depth": DEPTH,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 4,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
"""What the packed towers after Qwen2-VL's share."""


class HFQwen2VL(HFLlava):
    """transformers' Qwen2VLForConditionalGeneration: images and videos of several sizes."""

    name = "qwen2_vl"
    prefix = 0
    merges = False
    mrope = True

    def vision(self) -> dict[str, Any]:
        return {
            "depth": DEPTH,
            "embed_dim": 32,
            "hidden_size": 32,
            "mlp_ratio": 2,
            "num_heads": 4,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        }

    def config(self) -> Any:
        return self.config_class()(
            vision_config=self.vision(),
            text_config=self.text_config(),
            image_token_id=IMAGE_TOKEN,
            video_token_id=VIDEO_TOKEN,
            vision_start_token_id=97,
            vision_end_token_id=96,
        )

    def text_config(self) -> dict[str, Any]:
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
        return {**TEXT, "rope_parameters": rope}

    def config_class(self) -> Any:
        return Qwen2VLConfig

    def new(self, config: Any) -> Any:
        return Qwen2VLForConditionalGeneration(config)

    def samples(self) -> list[Sample]:
        return VIDEO_SAMPLES

    def grid(self, image: int) -> tuple[int, int]:
        return [(12, 12), (8, 20), (16, 12), (12, 18)][image % 4]

    def placeholders(self, image: int) -> int:
        height, width = self.grid(image)
        return height * width // 4

    def frames(self, video: int) -> list[int]:
        return [self.placeholders(video)] * 2

    def inputs(self, samples: list[Sample], side: str) -> dict[str, torch.Tensor]:
        inputs = super().inputs(samples, side)
        ids = inputs["input_ids"]
        return {**inputs, "mm_token_type_ids": (ids == IMAGE_TOKEN).int() + 2 * (ids == VIDEO_TOKEN).int()}

    def media(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        media: dict[str, torch.Tensor] = {}
        for which, times, pixel, grid in (
            ("images", 1, "pixel_values", "image_grid_thw"),
            ("videos", 2, "pixel_values_videos", "video_grid_thw"),
        ):
            seeds = [seed for sample in samples for seed in getattr(sample, which)]
            if seeds:
                sizes = [(times, *self.grid(seed)) for seed in seeds]
                media[grid] = torch.tensor(sizes)
                drawn = [noise(seed, t * h * w, 3 * 2 * 16) for seed, (t, h, w) in zip(seeds, sizes, strict=True)]
                media[pixel] = torch.cat(drawn)
        return media

    def tower(self, model: Any) -> Any:
        return model.model.visual

    def layers(self, model: Any) -> Any:
        return model.model.visual.blocks


class HFQwen25VL(HFQwen2VL):
    """transformers' Qwen2_5_VLForConditionalGeneration: windowed attention in most blocks."""

    name = "qwen2_5_vl"

    def vision(self) -> dict[str, Any]:
        return {
            **PACKED_VISION,
            "window_size": 24,
            "fullatt_block_indexes": [3, 7],
            "out_hidden_size": 32,
        }

    def config_class(self) -> Any:
        return Qwen2_5_VLConfig

    def new(self, config: Any) -> Any:
        return Qwen2_5_VLForConditionalGeneration(config)


class HFQwen3VL(HFQwen2VL):
    """transformers' Qwen3VLForConditionalGeneration: DeepStack after three layers, text between frames."""

    name = "qwen3_vl"

    def vision(self) -> dict[str, Any]:
        return {
            **PACKED_VISION,
            "out_hidden_size": 32,
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": [1, 4, 6],
        }

    def text_config(self) -> dict[str, Any]:
        return {**super().text_config(), "head_dim": 8}

    def config_class(self) -> Any:
        return Qwen3VLConfig

    def new(self, config: Any) -> Any:
        return Qwen3VLForConditionalGeneration(config)

    def stamps(self, video: int) -> list[list[int]]:
        return [[60 + video, 97], [96, 70 + video, 97]]

    def text(self, sample: Sample) -> int:
        return super().text(sample) + sum(map(len, chain(*map(self.stamps, sample.videos))))


class HFQwen3VLMoe(HFQwen3VL):
    """transformers' Qwen3VLMoeForConditionalGeneration: the same with experts in the language model."""

    name = "qwen3_vl_moe"

    def text_config(self) -> dict[str, Any]:
        return {**super().text_config(), "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

    def config_class(self) -> Any:
        return Qwen3VLMoeConfig

    def new(self, config: Any) -> Any:
        return Qwen3VLMoeForConditionalGeneration(config)


class HFQwen35(HFQwen3VL):
    """transformers' Qwen3_5ForConditionalGeneration: no DeepStack; three layers without attention, then one with it."""

    name = "qwen3_5"

    def vision(self) -> dict[str, Any]:
        return {name: value for name, value in super().vision().items() if name != "deepstack_visual_indexes"}

    def text_config(self) -> dict[str, Any]:
        found = super().text_config()
        rope = {**found["rope_parameters"], "partial_rotary_factor": 1.0}
        linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
        linear |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
        return {**found, **linear, "rope_parameters": rope}

    def config_class(self) -> Any:
        return Qwen3_5Config

    def new(self, config: Any) -> Any:
        return Qwen3_5ForConditionalGeneration(config)


class HFQwen35Moe(HFQwen35):
    """transformers' Qwen3_5MoeForConditionalGeneration: the same with experts."""

    name = "qwen3_5_moe"

    def text_config(self) -> dict[str, Any]:
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
        return {**super().text_config(), **experts, "shared_expert_intermediate_size": 32}

    def config_class(self) -> Any:
        return Qwen3_5MoeConfig

    def new(self, config: Any) -> Any:
        return Qwen3_5MoeForConditionalGeneration(config)


class HFGlm4v(HFQwen2VL):
    """transformers' Glm4vForConditionalGeneration. Images alone, because it takes none beside videos."""

    name = "glm4v"
    kind = 1

    def vision(self) -> dict[str, Any]:
        return {
            **PACKED_VISION,
            "image_size": 24,
            "out_hidden_size": 32,
        }

    def text_config(self) -> dict[str, Any]:
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1], "partial_rotary_factor": 0.5}
        return {**TEXT, "rope_parameters": rope}

    def config_class(self) -> Any:
        return Glm4vConfig

    def new(self, config: Any) -> Any:
        return Glm4vForConditionalGeneration(config)

    def build(self, config: Any = None, implementation: str = "sdpa") -> Any:
        """With q and k half as large: so much sharper than the others' that rounding shows."""
        model = super().build(config, implementation)
        for name, parameter in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                parameter.data *= 0.5
        return model

    def samples(self) -> list[Sample]:
        return SAMPLES

    def inputs(self, samples: list[Sample], side: str) -> dict[str, torch.Tensor]:
        inputs = super().inputs(samples, side)
        return {**inputs, "mm_token_type_ids": self.kind * (inputs["input_ids"] == IMAGE_TOKEN).int()}


class HFGlm46V(HFGlm4v):
    """transformers' Glm46VForConditionalGeneration, shown videos: the placeholders of a frame are those of an image."""

    name = "glm46v"
    kind = 2

    def config_class(self) -> Any:
        return Glm46VConfig

    def new(self, config: Any) -> Any:
        return Glm46VForConditionalGeneration(config)

    def samples(self) -> list[Sample]:
        def videos(sample: Sample) -> Sample:
            return Sample([VIDEO if token == IMAGE else token for token in sample.prompt], [], sample.images)

        return [videos(sample) for sample in SAMPLES]

    def row(self, sample: Sample) -> list[int]:
        return [IMAGE_TOKEN if token == VIDEO_TOKEN else token for token in super().row(sample)]

    def stamps(self, video: int) -> list[list[int]]:
        return [[], [96, 60 + video, 97]]

    def text(self, sample: Sample) -> int:
        return super().text(sample) + sum(map(len, chain(*map(self.stamps, sample.videos))))


class HFGlm4vMoe(HFGlm4v):
    """transformers' Glm4vMoeForConditionalGeneration: experts after the language model's first layer."""

    name = "glm4v_moe"

    def text_config(self) -> dict[str, Any]:
        experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 32}
        return {**super().text_config(), **experts, "first_k_dense_replace": 1, "head_dim": 8}

    def config_class(self) -> Any:
        return Glm4vMoeConfig

    def new(self, config: Any) -> Any:
        return Glm4vMoeForConditionalGeneration(config)
