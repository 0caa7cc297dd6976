"""transformers' Qwen3-VL and Qwen3-VL-MoE: packed patches, no CLS token, 2 x 2 merge groups, M-RoPE, DeepStack.

The mean of an image's queries stands for the global token (section 3.1). The encoder keeps twice the budget of merged
tokens, and the language model the budget after its second layer, as the paper does for long inputs (section 4), or
later, after the last layer that DeepStack adds to: in Qwen3-VL-8B the third. DeepStack takes states after three of the
encoder's layers and adds each, through a merger of its own, to the visual tokens' states after one of the language
model's first layers. Every tap keeps the tokens that are left in the end. A cut inside the language model may come
among those layers too; the remaining tokens then still get what is theirs. In a prompt each frame of a video has
placeholders of its own, with its time as text in front.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from flowcut.anatomy.packed import packed_encoder, packed_model
from flowcut.anatomy.reading import body_and_head
from flowcut.hooks.parts import Anatomy

FAMILY = "Qwen3VLForConditionalGeneration, Qwen3VLMoeForConditionalGeneration and their models (transformers)"
_HEADS = {"Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration"}
_MODELS = {"Qwen3VLModel", "Qwen3VLMoeModel"}


def read(model: Any) -> Anatomy | None:
    found = body_and_head(model, _HEADS, _MODELS)
    if found is None:
        return None
    taps = len(found[0].config.vision_config.deepstack_visual_indexes)
    encoder_of = partial(packed_encoder, tapped=bool(taps))
    return packed_model("qwen3_vl", model, *found, encoder_of, complete_after=max(taps - 1, 0))
