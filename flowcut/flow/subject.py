"""The model that is looked at: its encoder, how pictures become pixels for it, and answers where it can give any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

from flowcut.anatomy import Encoder, anatomy_of

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
        if self.encoder.unit > 1:
            raise ValueError(
                f"{self.name} merges patches {self.encoder.unit} by {self.encoder.unit} behind its encoder (Qwen2-VL); "
                "the flow is drawn for CLIP, SigLIP and DINOv2 encoders, alone or inside a LLaVA"
            )

    @property
    def read_after(self) -> int:
        """The layer whose output goes to the language model; LLaVA's choice, the last but one, in an encoder alone."""
        return self.encoder.whole_from

    def pixels(self, image: Image.Image) -> Tensor:
        """[1, 3, H, W], on the encoder's device. Where a model cuts tiles, the whole picture that comes first."""
        if self.reader is None:
            pixels = self.processor(images=[image], return_tensors="pt")["pixel_values"]
        else:
            shown = getattr(self.reader.checkpoint, "show", None) or self.reader.checkpoint.picture
            prepared = shown(image)
            pixels = prepared.inputs["pixel_values"] if hasattr(prepared, "inputs") else prepared.pixels
        weight = next(self.encoder.model.parameters())
        return pixels.reshape(-1, *pixels.shape[-3:])[:1].to(weight.device, weight.dtype)

    def picture(self, pixels: Tensor) -> np.ndarray:
        """Pixels [1, 3, H, W] back as a picture [H, W, 3], uint8."""
        from llava.mm_utils import picture_of

        return picture_of(pixels[0], self.processor)

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
            raise ValueError(f"{self.name} is an encoder alone and answers nothing; leave --question out")
        from llava.eval.models.reply import Generation

        answerer = type(self.reader)(self.reader.checkpoint, pruner, Generation(max_new_tokens=64))
        return [answerer([question], [[image]])[0].text for image in images]


def load_subject(path: str) -> Subject:
    """Load what a path or Hub name means: a LLaVA of either layout, another of transformers' own, or an encoder alone.

    Raises:
        ValueError: one line about what cannot be loaded, or is of no known family.
    """
    from llava.eval.models.load import load_answerer
    from llava.model.checkpoint import local_folder, read_config

    folder = local_folder(path, patterns=["*.json", "*.safetensors", "*.bin", "*.txt", "*.model", "*.jinja"])
    kind = read_config(folder).get("model_type") if (folder / "config.json").is_file() else None
    if kind in ENCODERS:
        return load_encoder(folder, ENCODERS[kind])
    reader = load_answerer(path, pruner="none")
    anatomy = anatomy_of(reader.checkpoint.model)
    preparation = getattr(reader.checkpoint, "preparation", None)
    processor = reader.checkpoint.image_processor if preparation is None else preparation.pictures
    return Subject(reader.checkpoint.name, anatomy.encoders[0], processor, reader)


def load_encoder(folder: Path, name: str) -> Subject:
    """An encoder alone, from a folder of transformers.

    Raises:
        ValueError: weights or the image processor's file are missing or broken.
    """
    from llava.model.checkpoint import DAMAGE, one_line, quiet, weight_names

    weight_names(folder)
    try:
        with quiet("transformers.modeling_utils"):
            model, report = getattr(transformers, name).from_pretrained(
                folder, output_loading_info=True, dtype=torch.float32
            )
        processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    except (OSError, *DAMAGE) as error:
        raise ValueError(f"the encoder in {folder} cannot be loaded: {one_line(error)}") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(f"{folder} lacks {len(missing)} weights of {name}, such as {missing[0]}; give a whole one")
    return Subject(folder.resolve().name, anatomy_of(model.eval()).encoders[0], processor)
