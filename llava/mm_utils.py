"""Preparation of images and prompts for the model."""

from __future__ import annotations

import ast
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import LlamaTokenizer, StoppingCriteria

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.given import decode_base64
from llava.pictures import middle_of_a_thin_one, opened, small_enough_for_a_square

Size = tuple[int, int]


def select_best_resolution(original_size: Size, possible_resolutions: Sequence[Size]) -> Size:
    """The canvas (width, height) that keeps most of the picture's pixels; on ties the one that wastes least, then the
    first.
    """
    width, height = original_size

    def merit(canvas: Size) -> tuple[int, int]:
        scale = min(canvas[0] / width, canvas[1] / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        return effective, -(canvas[0] * canvas[1] - effective)

    best = max(possible_resolutions, key=merit)
    return best[0], best[1]


def resize_and_pad_image(image: Image.Image, target_resolution: Size) -> Image.Image:
    """Fit the picture into (width, height), aspect kept, centred on black."""
    canvas_width, canvas_height = target_resolution
    by_width, by_height = canvas_width / image.width, canvas_height / image.height
    if by_width < by_height:
        fitted = (canvas_width, min(math.ceil(image.height * by_width), canvas_height))
    else:
        fitted = (min(math.ceil(image.width * by_height), canvas_width), canvas_height)
    canvas = Image.new("RGB", (canvas_width, canvas_height), (0, 0, 0))
    canvas.paste(image.resize(fitted), ((canvas_width - fitted[0]) // 2, (canvas_height - fitted[1]) // 2))
    return canvas


def divide_to_patches(image: Image.Image, patch_size: int) -> list[Image.Image]:
    """Square tiles, row by row; tiles at the right and lower edge are filled with black."""
    return [
        image.crop((left, top, left + patch_size, top + patch_size))
        for top in range(0, image.height, patch_size)
        for left in range(0, image.width, patch_size)
    ]


def _pinpoints(grid_pinpoints: Any) -> list[Size]:
    return ast.literal_eval(grid_pinpoints) if isinstance(grid_pinpoints, str) else grid_pinpoints


def get_anyres_image_grid_shape(image_size: Size, grid_pinpoints: Any, patch_size: int) -> tuple[int, int]:
    """Tiles (across, down) of a picture of (width, height); `grid_pinpoints` is a list or its text."""
    width, height = select_best_resolution(image_size, _pinpoints(grid_pinpoints))
    return width // patch_size, height // patch_size


def process_anyres_image(image: Image.Image, processor: Any, grid_pinpoints: Any) -> Tensor:
    """Pixels [1 + tiles, 3, H, W]: the whole picture first (squeezed to a square), then its tiles row by row."""
    canvas = resize_and_pad_image(image, select_best_resolution(image.size, _pinpoints(grid_pinpoints)))
    side = processor.size["shortest_edge"]
    tiles = [image.resize((side, side)), *divide_to_patches(canvas, processor.crop_size["height"])]
    return torch.stack([processor.preprocess(tile, return_tensors="pt")["pixel_values"][0] for tile in tiles])


def load_image_from_base64(image: str | bytes) -> Image.Image:
    """The picture in base64, in its own mode. Raises ValueError or Pillow's errors for other formats than ours."""
    return opened(io.BytesIO(decode_base64(image)))


def expand2square(pil_img: Image.Image, background_color: Any) -> Image.Image:
    """Pad to a square, with the picture centred; a square picture is returned unchanged."""
    side = max(pil_img.size)
    if pil_img.width == pil_img.height:
        return pil_img
    square = Image.new(pil_img.mode, (side, side), background_color)
    square.paste(pil_img, ((side - pil_img.width) // 2, (side - pil_img.height) // 2))
    return square


def process_images(images: Sequence[Image.Image], image_processor: Any, model_cfg: Any) -> Tensor | list[Tensor]:
    """Pixels of several pictures, by the checkpoint's `image_aspect_ratio`.

    "pad" pads to a square with CLIP's mean colour, "anyres" cuts tiles ([T, 3, H, W] each), anything else resizes the
    short side and crops the centre. One tensor when all have the same shape, else a list. Very long and thin pictures
    are shrunk before padding, or cut to their middle before the crop, to bound memory.
    """
    aspect = getattr(model_cfg, "image_aspect_ratio", None)
    images = [image.convert("RGB") for image in images]
    if aspect == "anyres":
        pixels = [process_anyres_image(image, image_processor, model_cfg.image_grid_pinpoints) for image in images]
    else:
        images = [before_the_processor(image, aspect, image_processor.image_mean) for image in images]
        pixels = [image_processor.preprocess(image, return_tensors="pt")["pixel_values"][0] for image in images]
    same_shape = len({one.shape for one in pixels}) == 1
    return torch.stack(pixels) if same_shape else pixels


def before_the_processor(image: Image.Image, aspect: str | None, image_mean: Sequence[float]) -> Image.Image:
    """A picture (RGB) as CLIP's processor gets it for an `image_aspect_ratio` other than "anyres", see
    `process_images`."""
    if aspect == "pad":
        return expand2square(small_enough_for_a_square(image), tuple(int(channel * 255) for channel in image_mean))
    return middle_of_a_thin_one(image)


def picture_of(pixels: Tensor, image_processor: Any) -> np.ndarray:
    """Pixels [3, H, W], the encoder's input, as a picture [H, W, 3], uint8."""
    mean, std = (torch.tensor(getattr(image_processor, name))[:, None, None] for name in ("image_mean", "image_std"))
    return ((pixels.float().cpu() * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def with_dummy_prefix(text: str, tokenizer: Any) -> str:
    """The text for `tokenizer`, so that LLaMA's tokenizer gives the ids of SentencePiece, and of LLaVA.

    transformers 5 omits the dummy prefix where a text begins with a space; an explicit prefix is kept. The tokenizers
    of `llava.model.tokenizer` add it themselves.
    """
    return "▁" + text if type(tokenizer) is LlamaTokenizer and text.startswith((" ", "▁")) else text


def tokenizer_image_token(
    prompt: str, tokenizer: Any, image_token_index: int = IMAGE_TOKEN_INDEX, return_tensors: str | None = None
) -> list[int] | Tensor:
    """Token ids of a prompt with `image_token_index` for every `<image>`.

    The text between images is tokenised piece by piece, as the checkpoints were trained: each piece gets the
    tokenizer's dummy prefix, only the first keeps the BOS token. Returns a list, or a 1-D tensor for "pt".
    """
    if return_tensors not in (None, "pt"):
        raise ValueError(f"Unsupported tensor type: {return_tensors}; use None or 'pt'")
    chunks = [tokenizer(with_dummy_prefix(text, tokenizer)).input_ids for text in prompt.split(DEFAULT_IMAGE_TOKEN)]
    has_bos = bool(chunks[0]) and chunks[0][0] == tokenizer.bos_token_id
    ids = list(chunks[0])
    for chunk in chunks[1:]:
        ids += [image_token_index, *chunk[has_bos:]]
    return torch.tensor(ids, dtype=torch.long) if return_tensors else ids


def get_model_name_from_path(model_path: str) -> str:
    """The last part of the path; for a `checkpoint-N` folder, preceded by its parent's name."""
    parts = model_path.strip("/").split("/")
    return "_".join(parts[-2:]) if parts[-1].startswith("checkpoint-") else parts[-1]


class KeywordsStoppingCriteria(StoppingCriteria):
    """Stops a row as soon as its new text ends with, or its last few tokens contain, one of the keywords."""

    def __init__(self, keywords: Sequence[str], tokenizer: Any, input_ids: Tensor) -> None:
        self.keywords = list(keywords)
        self.tokenizer = tokenizer
        self.start_len = input_ids.shape[1]
        self._prompt_length: int | None = None
        self.keyword_ids = []
        for keyword in self.keywords:
            ids = tokenizer(keyword).input_ids
            if len(ids) > 1 and ids[0] == tokenizer.bos_token_id:
                ids = ids[1:]
            self.keyword_ids.append(torch.tensor(ids))
        self.max_keyword_len = max(len(ids) for ids in self.keyword_ids)

    def _row_is_done(self, row: Tensor) -> bool:
        if self._prompt_length is None:
            # Generation from embeddings returns the new tokens only; otherwise the prompt precedes them.
            self._prompt_length = self.start_len if len(row) > self.start_len else 0
        new = row[self._prompt_length :]
        if any(len(new) >= len(ids) and torch.equal(new[-len(ids) :].cpu(), ids) for ids in self.keyword_ids):
            return True
        tail = self.tokenizer.decode(new[-self.max_keyword_len :], skip_special_tokens=True)
        return any(keyword in tail for keyword in self.keywords)

    def call_for_batch(self, output_ids: Tensor, scores: Any, **kwargs: Any) -> bool:
        """Whether the one row of `output_ids` [1, n] is done."""
        return self._row_is_done(output_ids[0])

    def __call__(self, output_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Bool [rows]: which rows are done."""
        return torch.tensor([self._row_is_done(row) for row in output_ids], device=output_ids.device)
