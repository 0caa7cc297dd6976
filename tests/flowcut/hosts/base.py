"""Samples, sizes and helpers that all hosts share, and the encoders alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
)

IMAGE, VIDEO = -200, -201
PATCHES = 36
DEPTH = 8
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "image_size": 24,
    "patch_size": 4,
}
TEXT = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
IMAGE_TOKEN, VIDEO_TOKEN = 99, 98
# A placeholder as an answer would be taken for another image when the answer is read again.
GREEDY = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": [IMAGE_TOKEN, VIDEO_TOKEN]}
GRIDS = [[24, 48], [48, 24], [48, 48]]


@dataclass
class Sample:
    prompt: list[int]
    images: list[int]
    videos: list[int] = field(default_factory=list)


SAMPLES = [
    Sample([1, 5, IMAGE, 7, 8, 9], [0]),
    Sample([1, IMAGE, 20, IMAGE, 21, 22, 23, 24, 25], [1, 2]),
    Sample([1, 30, 31, 32], []),
    Sample([IMAGE, 40], [3]),
]
VIDEO_SAMPLES = [
    Sample([1, 5, VIDEO, 7, 8, 9], [], [0]),
    Sample([1, IMAGE, 20, VIDEO, 21, 22, 23], [1], [2]),
    Sample([1, 30, 31, 32], []),
    Sample([IMAGE, 40], [3]),
]


def noise(seed: int, *shape: int) -> torch.Tensor:
    """Contrast grows with the seed, so that attention differs in sharpness."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * (1 + seed)


def pixels(images: list[int]) -> torch.Tensor:
    """[B, 3, 24, 24]; image `i` is always the same."""
    return torch.stack([noise(image, 3, 24, 24) for image in images])


def sharpen(model: torch.nn.Module) -> None:
    """Fresh weights are so small that attention is flat; widen them until tokens differ."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            std = 0.4 if "q_proj" in name or "k_proj" in name else 0.2
            parameter.data = torch.randn(parameter.shape, generator=generator) * std


def padded(rows: list[list[int]], side: str, pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    fill = [[pad] * (width - len(row)) for row in rows]
    both = list(zip(rows, fill, strict=True))
    ids = [empty + row if side == "left" else row + empty for row, empty in both]
    blank, ones = [[0] * len(empty) for empty in fill], [[1] * len(row) for row in rows]
    mask = [b + o if side == "left" else o + b for b, o in zip(blank, ones, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


class Clip:
    """A bare CLIPVisionModel; a sample is one image."""

    name = "clip"
    speaks = False
    prefix = 1
    merges = True  # whether methods that merge patches can be attached
    tiled = False  # whether an image is spread over tiles, of which padding is taken off
    most = 1000  # a budget that is never too small

    def config(self) -> Any:
        return CLIPVisionConfig(**VISION)

    def new(self, config: Any) -> Any:
        return CLIPVisionModel(config)

    def build(self, config: Any = None, implementation: str = "sdpa") -> Any:
        torch.manual_seed(0)
        model = self.new(config or self.config()).eval()
        model.set_attn_implementation(implementation)
        sharpen(model)
        return model

    def samples(self) -> list[Sample]:
        return [Sample([IMAGE], [image]) for image in range(4)]

    def outputs(self, model: Any, samples: list[Sample], handle: Any = None, side: str = "right") -> list[torch.Tensor]:
        images = pixels([image for sample in samples for image in sample.images]).to(model.dtype)
        states = model(images, output_hidden_states=True).hidden_states[-2][:, self.prefix :]
        return list(states)

    def tower(self, model: Any) -> Any:
        return model

    def layers(self, model: Any) -> Any:
        return self.tower(model).encoder.layers

    def decoder(self, model: Any) -> Any:
        return None


class Siglip(Clip):
    name = "siglip"
    prefix = 0

    def config(self) -> Any:
        return SiglipVisionConfig(**VISION)

    def new(self, config: Any) -> Any:
        return SiglipVisionModel(config)


class Dinov2(Clip):
    name = "dinov2"

    def config(self) -> Any:
        return Dinov2Config(**{k: v for k, v in VISION.items() if k != "intermediate_size"}, mlp_ratio=2)

    def new(self, config: Any) -> Any:
        return Dinov2Model(config)

    def layers(self, model: Any) -> Any:
        return model.encoder.layer
