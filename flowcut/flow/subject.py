"""The model that is looked at: its encoder, how pictures become pixels for it, and answers where it can give any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from flowcut import checkpoints
from flowcut.anatomy.find import anatomy_of
from flowcut.hooks.parts import Encoder

ENCODERS = {
    "clip": "CLIPVisionModel",
    "clip_vision_model": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
}
"""`model_type` in config.json -> the class of transformers that is the encoder alone."""


@dataclass
class Subject:
    """A vision encoder with what belongs to it.

    Attributes:
        name: of the model, for headings.
        encoder: what `flowcut.anatomy` knows of the encoder inside of its model.
        processor: the image processor, for what the pixels looked like.
        reader: an `Answerer` whose checkpoint prepares pictures; None for an encoder alone.
    """

    name: str
    encoder: Encoder
    processor: Any
    reader: Any = None

    def __post_init__(self) -> None:
        size = self.encoder.patches_per_token
        if size > 1:
            raise ValueError(
                f"{self.name} merges patches {size} by {size} after its encoder; "
                "the flow is drawn for CLIP, SigLIP and DINOv2 encoders, alone or inside a LLaVA"
            )

    @property
    def feature_layer(self) -> int:
        """The layer whose output goes to the language model; LLaVA's choice, the last but one, in an encoder alone."""
        return self.encoder.shape.feature_layer

    def pixels(self, image: Image.Image) -> Tensor:
        """[1, 3, H, W], on the encoder's device. Where a model cuts tiles, the whole picture that comes first."""
        if self.reader is None:
            pixels = self.processor(images=[image], return_tensors="pt")["pixel_values"]
        else:
            pixels = checkpoints.shown_pixels(self.reader, image)
        weight = next(self.encoder.model.parameters())
        return pixels.reshape(-1, *pixels.shape[-3:])[:1].to(weight.device, weight.dtype)

    def picture(self, pixels: Tensor) -> np.ndarray:
        """Pixels [1, 3, H, W] back as a picture [H, W, 3], uint8."""
        return checkpoints.original_picture(pixels[0], self.processor)

    def grid(self, pixels: Tensor) -> tuple[int, int]:
        """Rows and columns of patches."""
        patch = self.encoder.model.config.patch_size
        return pixels.shape[-2] // patch, pixels.shape[-1] // patch

    def answers(self, question: str, images: Sequence[Image.Image], pruner: str) -> list[str]:
        """The model's answer to the question about each image, with a pruner (as text) attached.

        Raises:
            ValueError: it is an encoder alone, or the pruner does not fit the model.
        """
        if self.reader is None:
            raise ValueError(f"{self.name} is an encoder alone and cannot answer; leave --question out")
        return checkpoints.answers_of(self.reader, question, images, pruner)


def load_subject(path: str) -> Subject:
    """Load what a path or Hub name means: a LLaVA of either layout, another of transformers' own, or an encoder alone.

    Raises:
        ValueError: one line about what cannot be loaded, or is of no known family.
    """
    folder, kind = checkpoints.model_type(path)
    if kind in ENCODERS:
        model, processor = checkpoints.load_encoder(folder, ENCODERS[kind])
        return Subject(folder.resolve().name, anatomy_of(model).encoders[0], processor)
    reader, processor = checkpoints.load_reader(path)
    return Subject(reader.checkpoint.name, anatomy_of(reader.checkpoint.model).encoders[0], processor, reader)
