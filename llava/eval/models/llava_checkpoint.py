"""LLaVA checkpoints that answer: loading, and preparing their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from llava.conversation import conversation_mode
from llava.eval.media.reading import Picture, PictureReader
from llava.eval.models.reply import check_device
from llava.eval.provenance import model_fingerprint
from llava.mm_utils import get_model_name_from_path, process_images
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import local_folder


class Checkpoint(NamedTuple):
    """A loaded model with its tokenizer and preprocessing. `mode` names the conversation template."""

    model: Any
    tokenizer: Any
    image_processor: Any
    name: str
    mode: str
    fingerprint: str

    @property
    def reader(self) -> PictureReader:
        """Reads pictures for this model; works in worker processes too."""
        return PictureReader(self.image_processor, self.model.config)

    def picture(self, image: Image.Image) -> Picture:
        """A picture (RGB) prepared for the model; see `process_images`."""
        [pixels] = process_images([image], self.image_processor, self.model.config)
        return Picture(pixels, image.size)

    def batch(self, pictures: Sequence[Picture]) -> Tensor | list[Tensor]:
        """The model's argument `images`, on its device and in its type."""
        tiles = [picture.pixels.to(device=self.model.device, dtype=self.model.dtype) for picture in pictures]
        return torch.stack(tiles) if len({one.shape for one in tiles}) == 1 else tiles

    def pixels(self, images: Sequence[Image.Image]) -> Tensor | list[Tensor]:
        """The model's argument `images`, from unprepared pictures."""
        return self.batch([self.picture(image) for image in images])


def load_checkpoint(
    model_path: str,
    model_base: str | None = None,
    conv_mode: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    default_mode: str | None = None,
    **loading: Any,
) -> Checkpoint:
    """Load a LLaVA checkpoint for answering. No pruner is attached, not even one stored in it; `Answerer` does that.

    conv_mode: conversation template; else the checkpoint's own `conv_version`, else `default_mode`, else by its name.
    device: default: CUDA where there is one. dtype: one of DTYPES; default: float16, on a CPU float32.
    loading: further arguments of `load_pretrained_model`, such as `load_4bit`.

    Raises ValueError, one line, when path, weights or template do not exist, or the model takes no images.
    """
    name = get_model_name_from_path(model_path)
    check_device(device)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = getattr(torch, dtype) if dtype else None
    tokenizer, model, image_processor, _ = load_pretrained_model(
        model_path, model_base, name, device=device, dtype=chosen, pruner="none", **loading
    )
    if image_processor is None:
        raise ValueError(f"{model_path} is a language model without vision tower; give a LLaVA checkpoint")
    own_mode = getattr(model.config, "conv_version", None) or default_mode
    mode = conversation_mode(name, own_mode, conv_mode)
    marks = [model_fingerprint(local_folder(path)) for path in (model_path, model_base) if path]
    return Checkpoint(model, tokenizer, image_processor, name, mode, "+".join(marks))
