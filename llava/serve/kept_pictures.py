"""Pictures of what the language model reads of a picture: kept patches, or regions that were merged into one token."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from flowcut.plots import merged_regions, veil
from llava.eval.media.images import decode_image
from llava.given import decode_base64

_STAGE = {"encoder": "after encoder layer", "language": "after LLM layer"}
GAP = 4  # pixels between the tiles of one picture


def final_picture(kept: dict[str, Any]) -> tuple[Image.Image, str]:
    """What remained at the end, from an answer's `kept` (see `answer_stats.kept_of`), and a caption."""
    views, grid = _views(kept), tuple(kept["grid"])
    patches = grid[0] * grid[1] * len(views)
    sources = kept.get("sources")
    if sources is not None:
        drawn = [merged_regions(view, np.array(row), grid) for view, row in zip(views, sources, strict=True)]
        tokens = sum(len({number for number in row if number >= 0}) for row in sources)
        caption = f"{patches} patches became {tokens} tokens; patches of one colour are one token"
        if any(number < 0 for row in sources for number in row):
            caption += ", pale patches were dropped"
    elif not kept["steps"]:
        return _beside(views), f"all {patches} patches"
    else:
        last = kept["steps"][-1]
        drawn = [veil(view, np.array(left, dtype=int), grid) for view, left in zip(views, last["kept"], strict=True)]
        caption = f"{sum(map(len, last['kept']))} of {patches} patches"
    if kept.get("others"):
        caption += f"; other tokens: {kept['others']}"
    if kept.get("mixed"):
        caption += "; tokens also contain other patches, which are not recorded"
    return _beside(drawn), caption


def layer_pictures(kept: dict[str, Any]) -> list[tuple[Image.Image, str]]:
    """Captioned pictures after each layer that dropped patches; of merged patches none but `final_picture`."""
    views, (rows, columns) = _views(kept), kept["grid"]
    shown = []
    for step in kept["steps"]:
        if step["stage"] == "encoder" and kept.get("sources") is not None:
            continue
        veiled = [
            veil(view, np.array(left, dtype=int), (rows, columns))
            for view, left in zip(views, step["kept"], strict=True)
        ]
        left = sum(len(row) for row in step["kept"])
        shown.append((_beside(veiled), f"{_STAGE[step['stage']]} {step['layer']}: {left}"))
    return shown


def _views(kept: dict[str, Any]) -> list[np.ndarray]:
    return [np.asarray(decode_image(decode_base64(view))) for view in kept["views"]]


def _beside(tiles: list[np.ndarray]) -> Image.Image:
    height, width = tiles[0].shape[:2]
    sheet = Image.new("RGB", (len(tiles) * (width + GAP) - GAP, height), "white")
    for number, tile in enumerate(tiles):
        sheet.paste(Image.fromarray(tile), (number * (width + GAP), 0))
    return sheet
