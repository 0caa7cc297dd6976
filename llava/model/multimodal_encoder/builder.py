"""Builds the vision tower of a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava.model.multimodal_encoder.clip_encoder import KNOWN_TOWERS, CLIPVisionTower, locate_tower


def build_vision_tower(vision_tower_cfg: Any, **kwargs: Any) -> CLIPVisionTower:
    """Build the tower named by `mm_vision_tower` (config) or `vision_tower` (model arguments).

    kwargs are passed to the tower: `delay_load=True` does not load the weights yet.
    Raises ValueError for a name that is neither a folder nor a CLIP repository LLaVA knows, and for `s2`, LLaVA's tower
    of several scales.
    """
    if getattr(vision_tower_cfg, "s2", False):
        raise ValueError("s2: true needs a tower of several scales, which is not supported; use another checkpoint")
    name = getattr(vision_tower_cfg, "mm_vision_tower", None) or getattr(vision_tower_cfg, "vision_tower", None)
    located = locate_tower(str(name), getattr(vision_tower_cfg, "_name_or_path", None))
    known = str(name).startswith(("openai", "laion")) or "ShareGPT4V" in str(name) or Path(located).name in KNOWN_TOWERS
    if not (known or Path(located).exists()):
        raise ValueError(
            f"Unknown vision tower: {name}; give a folder with a CLIP vision model, or a Hub name that starts with "
            f"openai/ or laion/"
        )
    return CLIPVisionTower(str(name), args=vision_tower_cfg, **kwargs)
