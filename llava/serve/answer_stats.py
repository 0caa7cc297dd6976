"""The cost of an answer, and the patches it is based on."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from flowcut.trace import Trace
from llava.eval.models.llava_checkpoint import Checkpoint
from llava.eval.models.stopwatch import Stopwatch
from llava.eval.models.token_counts import TokenCounts, picture_sizes
from llava.mm_utils import picture_of


@dataclass
class AnswerStats:
    """Numbers of one answer.

    pruner: as text. patches: visual tokens before the encoder's first layer, all images and tiles together.
    visual_tokens, text_tokens: tokens that the language model read. encoder: visual tokens before the first encoder
    layer and after each. language: visual tokens that enter each decoder layer, for pruners that cut there; else None.
    encode_ms: vision tower and projector; prefill_ms: the language model's first pass; None for both where another
    server answers; total_ms: until the last token.
    tokens_per_second: of those after the first; None if there was one only. finish: "stop", "length", "cancelled",
    or "context" when the prompt fills the context. comparison: for a question with `rounds`, see `Run.compare`.

    The times are those of this one answer, with whatever is slow at a first call; those to compare are in `comparison`.
    """

    pruner: str = "none"
    patches: int = 0
    visual_tokens: int = 0
    text_tokens: int = 0
    new_tokens: int = 0
    encode_ms: float | None = 0.0
    prefill_ms: float | None = 0.0
    total_ms: float = 0.0
    tokens_per_second: float | None = None
    encoder: list[int] = field(default_factory=list)
    language: list[int] | None = None
    finish: str = "stop"
    comparison: dict[str, Any] | None = None


def answer_stats_of(
    model: Any, trace: Trace | None, pixels: Any, watch: Stopwatch, total: float, new: int
) -> AnswerStats:
    """Numbers of one generation; the caller sets pruner, text tokens and finish."""
    tower = model.get_vision_tower()
    counts = TokenCounts([picture_sizes(tower, pixels if pixels is not None else [])], tower.layers_run, trace)
    encoder = counts.encoder_tokens(0)
    decode = total - watch.encode_ms - watch.prefill_ms
    return AnswerStats(
        patches=encoder[0] if encoder else 0,
        visual_tokens=sum(watch.visual_tokens),
        new_tokens=new,
        encode_ms=round(watch.encode_ms, 3),
        prefill_ms=round(watch.prefill_ms, 3),
        total_ms=round(total, 3),
        tokens_per_second=round(1000 * (new - 1) / decode, 3) if new > 1 and decode > 0 else None,
        encoder=encoder,
        language=counts.language_tokens(0),
    )


def kept_of(checkpoint: Checkpoint, trace: Trace | None, pixels: Any) -> dict[str, Any]:
    """Data for drawing.

    `views`: the encoder's input for each tile (JPEG, base64). `grid`: [rows, columns] of patches. `steps`: one dict for
    each layer that dropped tokens, with `stage` ("encoder" or "language"), `layer` and `kept`: the kept positions of
    each view, row-major from 0. `sources`: for methods that merge, for each view the number of the token that each
    patch went into, -1 if it was dropped; else None. `others`: tokens that are no patch (CLS, a summary of many).
    `mixed`: whether tokens took in others without a record of which.
    """
    tower = checkpoint.model.get_vision_tower()
    tiles = [tile for image in pixels for tile in (image[None] if image.ndim == 3 else image)]
    steps: list[dict[str, Any]] = []
    sources, others, mixed = None, 0, False
    if trace is not None:
        for layer, kept in sorted(trace.kept.items()):
            rows = [sorted(position for position in row.tolist() if position >= 0) for row in kept]
            steps.append({"stage": "encoder", "layer": layer, "kept": rows})
        steps += _language_steps(trace, len(tiles))
        sources = [row.tolist() for row in trace.sources] or None
        others = sum(int((row < 0).sum()) for row in trace.final) if trace.kept else 0
        mixed = trace.mixed or (trace.language is not None and trace.language.mixed)
    return {
        "views": [_jpeg(tile, checkpoint.image_processor) for tile in tiles],
        "grid": [tower.num_patches_per_side] * 2,
        "steps": steps,
        "sources": sources,
        "others": others,
        "mixed": mixed,
    }


def _language_steps(trace: Trace, views: int) -> list[dict[str, Any]]:
    steps = []
    for layer, kept in sorted(trace.language.kept.items()) if trace.language is not None else ():
        rows: list[set[int]] = [set() for _ in range(views)]
        for image, numbers in zip(trace.shown, kept, strict=True):
            for view, position in trace.tokens[image][numbers.to(trace.tokens[image].device)].tolist():
                if position >= 0:
                    rows[view].add(position)
        steps.append({"stage": "language", "layer": layer, "kept": [sorted(row) for row in rows]})
    return steps


def _jpeg(pixels: torch.Tensor, image_processor: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture_of(pixels, image_processor)).save(buffer, "JPEG", quality=90)
    return base64.b64encode(buffer.getvalue()).decode()
