"""This project's own LLaVA classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch

from llava import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.language_model.llava_mistral import LlavaMistralConfig, LlavaMistralForCausalLM

from .base import (
    GREEDY,
    GRIDS,
    TEXT,
    VISION,
    Sample,
    pixels,
    sharpen,
)
from .llava_hf import HFLlava, HFLlavaNext, size_of


class OurLlava(HFLlava):
    """This project's LlavaLlamaForCausalLM."""

    name = "llava"
    fields: ClassVar[dict[str, Any]] = {"mm_patch_merge_type": "flat"}

    def __init__(self, folder: Path):
        self.folder = folder

    def config(self) -> Any:
        return self.config_class()(
            **TEXT,
            mm_vision_tower=str(self.folder),
            mm_vision_select_layer=-2,
            mm_vision_select_feature="patch",
            mm_projector_type="mlp2x_gelu",
            mm_hidden_size=VISION["hidden_size"],
            **self.fields,
        )

    def config_class(self) -> Any:
        return LlavaConfig

    def new(self, config: Any) -> Any:
        return LlavaLlamaForCausalLM(config)

    def build(self, config: Any = None, implementation: str = "sdpa") -> Any:
        torch.manual_seed(0)
        model = self.new(config or self.config())
        model.get_vision_tower().load_model()
        model.set_attn_implementation(implementation)
        self.tower(model).set_attn_implementation(implementation)
        sharpen(model)
        return model.eval()

    def row(self, sample: Sample) -> list[int]:
        return sample.prompt

    def media(self, samples: list[Sample]) -> dict[str, Any]:
        images = [image for sample in samples for image in sample.images]
        return {"images": pixels(images)} if images else {}

    def lengths(self, samples: list[Sample], handle: Any) -> list[int]:
        if handle is None:
            return [self.text(sample) + sum(map(self.placeholders, sample.images)) for sample in samples]
        return super().lengths(samples, handle)

    def outputs(self, model: Any, samples: list[Sample], handle: Any = None, side: str = "right") -> list[torch.Tensor]:
        model.config.tokenizer_padding_side = side
        logits = model(**self.cast(model, self.inputs(samples, side))).logits
        lengths = self.lengths(samples, handle)
        return [row[-n:] if side == "left" else row[:n] for row, n in zip(logits, lengths, strict=True)]

    def generate(self, model: Any, samples: list[Sample], **settings: Any) -> torch.Tensor:
        return model.generate(**self.inputs(samples, "left"), **GREEDY, **settings)

    def labelled(self, samples: list[Sample]) -> dict[str, Any]:
        inputs = self.inputs(samples, "right")
        ids = inputs["input_ids"]
        return {**inputs, "labels": ids.masked_fill((ids < 0) | (inputs["attention_mask"] == 0), -100)}

    def loss(self, model: Any, samples: list[Sample]) -> torch.Tensor:
        model.config.tokenizer_padding_side = "right"
        return super().loss(model, samples)

    def tower(self, model: Any) -> Any:
        return model.get_vision_tower().vision_tower

    def decoder(self, model: Any) -> Any:
        return model.model


class OurMistral(OurLlava):
    """This project's LlavaMistralForCausalLM, with an attention window shorter than the sequences."""

    name = "llava_mistral"
    fields: ClassVar[dict[str, Any]] = {**OurLlava.fields, "sliding_window": 16}

    def config_class(self) -> Any:
        return LlavaMistralConfig

    def new(self, config: Any) -> Any:
        return LlavaMistralForCausalLM(config)


class OurNext(OurLlava, HFLlavaNext):
    """This project's LlavaLlamaForCausalLM with anyres tiles."""

    name = "llava_next"
    fields: ClassVar[dict[str, Any]] = {
        "mm_patch_merge_type": "spatial_unpad",
        "image_aspect_ratio": "anyres",
        "image_grid_pinpoints": [[width, height] for height, width in GRIDS],
    }

    def media(self, samples: list[Sample]) -> dict[str, Any]:
        images = [image for sample in samples for image in sample.images]
        return {"images": self.tiles(images), "image_sizes": [size_of(image) for image in images]} if images else {}
