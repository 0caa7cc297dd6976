"""transformers' Qwen3.5 and Qwen3.5-MoE: Qwen3-VL's encoder without DeepStack, over a language model that is not cut.

The mean of an image's queries stands for the global token (section 3.1). Most layers of the language model have no
attention but a recurrent state, which nobody can choose tokens by and from which none can be taken. So methods that cut
there are refused, and those that the paper cuts in two stages for long inputs (section 4) cut here in the encoder
alone, down to the budget. Every token retains its M-RoPE position ids.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from flowcut.anatomy.packed import packed_encoder, packed_model
from flowcut.anatomy.reading import body_and_head
from flowcut.hooks.parts import Anatomy

FAMILY = "Qwen3_5ForConditionalGeneration, Qwen3_5MoeForConditionalGeneration and their models (transformers)"
_HEADS = {"Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration"}
_MODELS = {"Qwen3_5Model", "Qwen3_5MoeModel"}


def read(model: Any) -> Anatomy | None:
    found = body_and_head(model, _HEADS, _MODELS)
    encoder_of = partial(packed_encoder, two_stage=False)
    return None if found is None else packed_model("qwen3_5", model, *found, encoder_of, two_stage=False)
