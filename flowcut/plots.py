"""Pictures from arrays. Nothing here loads a model or an image file."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

PANEL = 336
CAPTION = 18


def veil(picture: np.ndarray, kept: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The picture [H, W, 3], uint8, with every patch veiled whose number (row-major from 0) is not in `kept`."""
    rows, columns = grid
    mask = np.zeros(rows * columns, dtype=bool)
    mask[kept] = True
    height, width = picture.shape[:2]
    shown = mask.reshape(rows, columns)[np.ix_(np.arange(height) * rows // height, np.arange(width) * columns // width)]
    return np.where(shown[..., None], picture, (picture * 0.15 + 255 * 0.8).astype(np.uint8))


def merged_regions(picture: np.ndarray, sources: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The picture [H, W, 3], uint8, with the patches that were merged into one token in one colour.

    Patches that are a token of their own stay clear, those that were dropped are veiled, and lines part the tokens.

    Args:
        sources: [rows * columns], row-major: the number of the token that each patch went into, -1 if it was dropped
            (`Trace.sources`).
        grid: rows and columns of patches.
    """
    rows, columns = grid
    height, width = picture.shape[:2]
    down, across = np.arange(height) * rows // height, np.arange(width) * columns // width
    sizes = np.bincount(sources[sources >= 0], minlength=1)
    sheet = veil(picture, np.flatnonzero(sources >= 0), grid).astype(float)
    number = sources.reshape(rows, columns)[np.ix_(down, across)]
    # A step of the golden ratio around the colour circle keeps the hues of tokens with near numbers apart.
    hues = [colorsys.hls_to_rgb(token * 0.618034 % 1, 0.5, 0.9) for token in range(len(sizes))]
    merged = (number >= 0) & (sizes[number] > 1)
    sheet[merged] = 0.55 * sheet[merged] + 0.45 * 255 * np.array(hues)[number[merged]]
    edge = np.zeros((height, width), dtype=bool)
    edge[1:] |= (number[1:] != number[:-1]) & (merged[1:] | merged[:-1])
    edge[:, 1:] |= (number[:, 1:] != number[:, :-1]) & (merged[:, 1:] | merged[:, :-1])
    sheet[edge] = 40
    return sheet.astype(np.uint8)


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
        panels.append((f"{caption}: {len(np.unique(kept))} of {rows * columns}", veil(picture, kept, grid)))
    width = min(4, len(panels))
    height = math.ceil(len(panels) / width)
    sheet = Image.new("RGB", (width * PANEL, height * (PANEL + CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (caption, panel) in enumerate(panels):
        left, top = number % width * PANEL, number // width * (PANEL + CAPTION)
        draw.text((left + 4, top + 3), caption, fill="black")
        sheet.paste(Image.fromarray(panel), (left, top + CAPTION))
    return sheet
