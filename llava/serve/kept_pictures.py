"""The page's output for an answer: pictures of the kept patches, and a table of its costs."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from PIL import Image

from flowcut.plots import veil
from llava.eval.media.images import decode_image

_STAGE = {"encoder": "layer", "language": "LLM layer"}
GAP = 4  # pixels between the tiles of one picture


def overlays(kept: dict[str, Any]) -> list[tuple[Image.Image, str]]:
    """Captioned pictures from an answer's `kept` (see `answer_stats.kept_of`): the input, then each selection."""
    views = [np.asarray(decode_image(base64.b64decode(view))) for view in kept["views"]]
    rows, columns = kept["grid"]
    patches = rows * columns * len(views)
    shown = [(_beside(views), f"{patches} patches")]
    for step in kept["steps"]:
        veiled = [
            veil(view, np.array(left, dtype=int), (rows, columns))
            for view, left in zip(views, step["kept"], strict=True)
        ]
        left = sum(len(row) for row in step["kept"])
        shown.append((_beside(veiled), f"{_STAGE[step['stage']]} {step['layer']}: {left}"))
    return shown


def _beside(tiles: list[np.ndarray]) -> Image.Image:
    height, width = tiles[0].shape[:2]
    sheet = Image.new("RGB", (len(tiles) * (width + GAP) - GAP, height), "white")
    for number, tile in enumerate(tiles):
        sheet.paste(Image.fromarray(tile), (number * (width + GAP), 0))
    return sheet


def figure_table(figures: dict[str, Any], unpruned: dict[str, Any] | None) -> str:
    """Markdown: an answer's figures, next to those of the same question unpruned, if this session has them."""
    rows = [
        ("pruner", figures["pruner"].replace(":", ": "), ""),
        ("visual tokens", _path(figures), _path(unpruned)),
        ("text tokens", figures["text_tokens"], _of(unpruned, "text_tokens")),
        ("encode, ms", _ms(figures, "encode_ms"), _ms(unpruned, "encode_ms")),
        ("prefill, ms", _ms(figures, "prefill_ms"), _ms(unpruned, "prefill_ms")),
        ("total, ms", _ms(figures, "total_ms"), _ms(unpruned, "total_ms")),
        ("answer tokens", figures["new_tokens"], _of(unpruned, "new_tokens")),
        ("tokens a second", _ms(figures, "tokens_per_second"), _ms(unpruned, "tokens_per_second")),
        ("first token sooner by", _ratio(figures, unpruned), ""),
    ]
    lines = ["| | now | none |", "|---|---:|---:|"]
    lines += [f"| {name} | {mine} | {other} |" for name, mine, other in rows]
    for name in ("encoder", "language"):
        if figures.get(name):
            lines += ["", f"{name}, layer by layer: {' '.join(map(str, figures[name]))}"]
    if unpruned is None:
        lines += ["", "Ask the same with method none to compare."]
    return "\n".join(lines)


def _path(figures: dict[str, Any] | None) -> str:
    return f"{figures['patches']} → {figures['visual_tokens']}" if figures else "-"


def _of(figures: dict[str, Any] | None, name: str) -> Any:
    return figures[name] if figures else "-"


def _ms(figures: dict[str, Any] | None, name: str) -> str:
    value = figures[name] if figures else None
    return "-" if value is None else f"{value:.1f}"


def _ratio(figures: dict[str, Any], unpruned: dict[str, Any] | None) -> str:
    mine = figures["encode_ms"] + figures["prefill_ms"]
    if unpruned is None or not mine:
        return "-"
    return f"{(unpruned['encode_ms'] + unpruned['prefill_ms']) / mine:.2f}x"
