"""The page's output for an answer: pictures of the kept patches, and a table of its costs."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from flowcut.plots import veil
from llava.eval.media.images import decode_image
from llava.given import decode_base64

_STAGE = {"encoder": "layer", "language": "LLM layer"}
GAP = 4  # pixels between the tiles of one picture


def overlays(kept: dict[str, Any]) -> list[tuple[Image.Image, str]]:
    """Captioned pictures from an answer's `kept` (see `answer_stats.kept_of`): the input, then each selection."""
    views = [np.asarray(decode_image(decode_base64(view))) for view in kept["views"]]
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


def figure_table(figures: dict[str, Any]) -> str:
    """Markdown: an answer's figures, and the comparison of its first token with the same prompt unpruned, if any."""
    if not figures["patches"]:
        lines = ["There was no picture, so nothing was pruned.", "", *_table(["", "this answer"], _times(figures))]
        return "\n".join(lines)
    counted = [("pruner", figures["pruner"].replace(":", ": ")), ("visual tokens", _path(figures))]
    lines = _table(["", "this answer"], [*counted, *_times(figures)])
    for name in ("encoder", "language"):
        if figures.get(name):
            lines += ["", f"{name}, layer by layer: {' '.join(map(str, figures[name]))}"]
    return "\n".join(lines + _comparison(figures.get("comparison")))


def _comparison(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return ["", "Times of a single answer vary; tick Compare to measure against none."]
    if "problem" in found:
        return ["", f"The comparison with none failed: {found['problem']}"]
    pruned, none = found["pruned"], found["none"]
    ratio = f"{none['ttft_ms'] / pruned['ttft_ms']:.2f}x" if pruned["ttft_ms"] else "-"
    rows: list[tuple[Any, ...]] = [("visual tokens", pruned["visual_tokens"], none["visual_tokens"])]
    for name, key in (("encode, ms", "encode_ms"), ("prefill, ms", "prefill_ms"), ("first token, ms", "ttft_ms")):
        rows.append((name, f"{pruned[key]:.1f}", f"{none[key]:.1f}"))
    rows.append(("first token sooner by", ratio, ""))
    said = f"Compared with none: medians of {found['rounds']} rounds in turns, after a warm-up."
    return ["", said, "", *_table(["", "pruned", "none"], rows)]


def _times(figures: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        ("text tokens", figures["text_tokens"]),
        ("encode, ms", _ms(figures, "encode_ms") if figures["patches"] else "-"),
        ("prefill, ms", _ms(figures, "prefill_ms")),
        ("total, ms", _ms(figures, "total_ms")),
        ("answer tokens", figures["new_tokens"]),
        ("tokens a second", _ms(figures, "tokens_per_second")),
    ]


def _table(head: list[str], rows: list[tuple[Any, ...]]) -> list[str]:
    cells = [head, *rows]
    lines = [f"| {' | '.join(map(str, row))} |" for row in cells]
    return [lines[0], "|---|" + "---:|" * (len(head) - 1), *lines[1:]]


def _path(figures: dict[str, Any]) -> str:
    return f"{figures['patches']} → {figures['visual_tokens']}"


def _ms(figures: dict[str, Any], name: str) -> str:
    value = figures[name]
    return "-" if value is None else f"{value:.1f}"
