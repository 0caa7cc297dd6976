"""The vision tower inside of a multimodal model, of whichever known kind."""

from __future__ import annotations

from typing import Any

from flowcut.anatomy import clip, dinov2, siglip
from flowcut.anatomy.reading import class_names, copies, unwrap
from flowcut.hooks.parts import Encoder


def vision_encoder(tower: Any, **fields: Any) -> Encoder:
    """The vision tower inside of a LLaVA, of whichever known kind.

    Raises:
        ValueError: it is of no known kind.
    """
    tower = unwrap(tower)
    for kind in (clip, siglip, dinov2):
        if class_names(tower) & kind.NAMES:
            return kind.encoder_of(tower, **fields)
    known = "; ".join(kind.FAMILY for kind in (clip, siglip, dinov2))
    raise ValueError(f"a {type(tower).__name__} as vision tower cannot be pruned; known are: {known}")


def vision_encoders(tower: Any, **fields: Any) -> list[Encoder]:
    """A vision tower, and after it the copies that PEFT keeps of it, so that pruning goes on when adapters change."""
    return [vision_encoder(copy, **fields) for copy in copies(tower)]
