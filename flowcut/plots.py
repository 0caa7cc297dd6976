"""Pictures from arrays. Nothing here loads a model or an image file."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

PANEL = 336
CAPTION = 18


def kept_patches(image: np.ndarray, steps: Sequence[tuple[str, np.ndarray]], grid: tuple[int, int]) -> Image.Image:
    """The picture, and beside it once per step with the dropped patches veiled.

    Args:
        image: [H, W, 3], uint8, as the encoder saw it.
        steps: caption and kept patches, row-major from 0, of each step.
        grid: rows and columns of patches.
    """
    rows, columns = grid
    picture = np.asarray(Image.fromarray(image).resize((PANEL, PANEL), Image.Resampling.BICUBIC))
    panels = [("image", picture)]
    for caption, kept in steps:
        mask = np.zeros(rows * columns, dtype=bool)
        mask[kept] = True
        down, across = np.arange(PANEL) * rows // PANEL, np.arange(PANEL) * columns // PANEL
        shown = mask.reshape(rows, columns)[np.ix_(down, across)]
        veiled = (picture * 0.15 + 255 * 0.8).astype(np.uint8)
        panels.append((f"{caption}: {mask.sum()} of {mask.size}", np.where(shown[..., None], picture, veiled)))
    width = min(4, len(panels))
    height = math.ceil(len(panels) / width)
    sheet = Image.new("RGB", (width * PANEL, height * (PANEL + CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (caption, panel) in enumerate(panels):
        left, top = number % width * PANEL, number // width * (PANEL + CAPTION)
        draw.text((left + 4, top + 3), caption, fill="black")
        sheet.paste(Image.fromarray(panel), (left, top + CAPTION))
    return sheet
