"""transformers' Qwen2-VL and Qwen2.5-VL: packed patches, no CLS token, four patches merged into one token, M-RoPE.

All images of a call lie in one packed sequence, an image's patches in 2 x 2 merge groups one after the other (in 2.5
sorted into attention windows besides). The mean of an image's queries stands for the global token, in windowed blocks
too. The encoder keeps twice the budget of merged tokens, whose patches went together; after the language model's second
layer the budget is kept. Every token retains its M-RoPE position ids. A frame of a video counts as an image.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowcut.anatomy.packed import PackedForward, packed_encoder, packed_model
from flowcut.anatomy.reading import body_and_head
from flowcut.hooks.parts import Anatomy, Encoder

FAMILY = "Qwen2VLForConditionalGeneration, Qwen2_5_VLForConditionalGeneration and their models (transformers)"
_HEADS = {"Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"}
_MODELS = {"Qwen2VLModel", "Qwen2_5_VLModel"}


def read(model: Any) -> Anatomy | None:
    found = body_and_head(model, _HEADS, _MODELS)
    return None if found is None else packed_model("qwen2_vl", model, *found, encoder_of)


def encoder_of(tower: Any) -> Encoder:
    """The parts of a Qwen2VisionTransformer."""
    if not hasattr(tower, "window_size"):
        return packed_encoder(tower)
    return packed_encoder(tower, windowed=True, forward=WindowedForward)


class WindowedForward(PackedForward):
    """Qwen2.5-VL's: patches are sorted into attention windows."""

    def order(self, device: torch.device) -> Tensor:
        from transformers.vision_utils import get_vision_window_index  # not before a model is there

        tower, size = self.encoder.model, self.encoder.patches_per_token
        window, _ = get_vision_window_index(
            self.grid,
            spatial_merge_size=tower.spatial_merge_size,
            window_size=tower.window_size,
            patch_size=tower.patch_size,
        )
        return (window.to(device)[:, None] * size + torch.arange(size, device=device)).flatten()
