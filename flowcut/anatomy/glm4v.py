"""transformers' GLM-4.1V, GLM-4.5V and GLM-4.6V: packed patches, no CLS token, 2 x 2 patches joined by a convolution.

The mean of an image's queries stands for the global token (section 3.1). As the paper does for long inputs (section 4),
the encoder keeps twice the budget of merged tokens, whose patches went together, and the language model the budget
after its second layer. Every token retains its M-RoPE position ids. In a prompt each frame of a video has placeholders
of its own, with its time as text behind, and they are those of images: transformers takes no images and videos in one
call.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from flowcut.anatomy.packed import merged, packed_encoder, packed_model
from flowcut.anatomy.reading import body_and_head
from flowcut.hooks.parts import Anatomy, Encoder

FAMILY = (
    "Glm4vForConditionalGeneration, Glm4vMoeForConditionalGeneration, Glm46VForConditionalGeneration and their models "
    "(transformers)"
)
_HEADS = {"Glm4vForConditionalGeneration", "Glm4vMoeForConditionalGeneration", "Glm46VForConditionalGeneration"}
_MODELS = {"Glm4vModel", "Glm4vMoeModel", "Glm46VModel"}


def read(model: Any) -> Anatomy | None:
    found = body_and_head(model, _HEADS, _MODELS)
    return None if found is None else packed_model("glm4v", model, *found, encoder_of, video_token="image_token_id")


def encoder_of(tower: Any) -> Encoder:
    """The parts of a Glm4vVisionModel."""
    return packed_encoder(tower, project=partial(merged, partial(_merge, tower)))


def _merge(tower: Any, states: Tensor) -> Tensor:
    """Patches [P, D] -> tokens [P / 4, D']: the convolution is one step over a group of patches."""
    side = tower.spatial_merge_size
    groups = tower.post_layernorm(states).unflatten(0, (-1, side, side)).permute(0, 3, 1, 2)
    return tower.merger(tower.downsample(groups).flatten(1))
