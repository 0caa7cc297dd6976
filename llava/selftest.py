"""Tests on tiny random models whether generation with a KV cache gives the same tokens as generation without one.

An unsupported version of transformers is likely to break this first, without an error: a forward may store its tokens
in a cache which the model does not read. Pruners that choose by the last token are left out, because without a cache
this token changes at each step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor

from flowcut import attach, parse_pruner
from flowcut.bench.geometries import GEOMETRIES, PLACEHOLDER, VOCABULARY, Geometry
from flowcut.bench.synthetic import draw_weights, media
from llava.constants import IMAGE_TOKEN_INDEX
from llava.model import LlavaConfig, LlavaLlamaForCausalLM

PRUNERS = ("none", "fastervlm:budget=8", "flowcut:budget=8", "vtw:budget=18")
SETTINGS: dict[str, Any] = {
    "max_new_tokens": 6,
    "do_sample": False,
    "suppress_tokens": [PLACEHOLDER, PLACEHOLDER - 1],
    "eos_token_id": None,
}


class Outcome(NamedTuple):
    """The result of one model with one pruner: `error` is None if generation with and without cache gave the same
    tokens.
    """

    model: str
    pruner: str
    error: str | None


def check_generation() -> list[Outcome]:
    """Generate with and without the KV cache, for every tiny model with every pruner that fits it."""
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()  # messages about saving and loading the tower
    outcomes = []
    for name, build in TINY_MODELS.items():
        try:
            model, inputs = build()
        except Exception as error:
            outcomes.append(Outcome(name, "none", _one_line(error)))
            continue
        for pruner in PRUNERS:
            if pruner.startswith("flowcut") and name == "Qwen2-VL":
                continue  # chooses by the last token there
            outcomes.append(Outcome(name, pruner, compare(model, inputs, pruner)))
    return outcomes


def compare(model: Any, inputs: dict[str, Any], pruner: str) -> str | None:
    """The fault of generation with a pruner, in one line; None if there is none."""
    try:
        made = parse_pruner(pruner)
        with torch.no_grad():
            if made is None:
                cached, uncached = (model.generate(**inputs, **SETTINGS, use_cache=use) for use in (True, False))
            else:
                with attach(model, made):
                    cached, uncached = (model.generate(**inputs, **SETTINGS, use_cache=use) for use in (True, False))
    except Exception as error:  # an unsupported version may raise anything; it is reported
        return _one_line(error)
    if torch.equal(cached, uncached):
        return None
    return f"with the KV cache it gives tokens {cached[0].tolist()}, without it {uncached[0].tolist()}"


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _fields(shape: Geometry) -> dict[str, Any]:
    """The two configs of a model with a tiny vocabulary."""
    text = {"num_hidden_layers": 4, "vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": None}
    return {"vision_config": shape.vision, "text_config": {**shape.text, **text}}


def transformers_llava() -> tuple[Any, dict[str, Any]]:
    """A model with random weights, and arguments of `generate` for a question about each of two pictures."""
    shape = GEOMETRIES["tiny"]
    fields: dict[str, Any] = {**_fields(shape), "image_token_id": PLACEHOLDER}
    config = transformers.LlavaConfig(**fields)
    model = transformers.LlavaForConditionalGeneration(config)
    return _ready(model), {"input_ids": _prompts(PLACEHOLDER, 36), **media(shape, 2, seed=0)}


def own_llava() -> tuple[Any, dict[str, Any]]:
    """The same for this project's classes."""
    shape = GEOMETRIES["tiny"]
    fields = _fields(shape)
    with tempfile.TemporaryDirectory() as folder:
        transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**shape.vision)).save_pretrained(folder)
        tower: dict[str, Any] = {"mm_vision_tower": folder, "mm_vision_select_layer": -2, "mm_hidden_size": 64}
        model = LlavaLlamaForCausalLM(LlavaConfig(**fields["text_config"], **tower))
        model.get_vision_tower().load_model()
    images = media(shape, 2, seed=0)["pixel_values"]
    return _ready(model), {"inputs": _prompts(IMAGE_TOKEN_INDEX, 1), "images": images}


def qwen2_vl() -> tuple[Any, dict[str, Any]]:
    """The same for Qwen2-VL."""
    shape = GEOMETRIES["tiny-qwen"]
    tokens: dict[str, Any] = {"image_token_id": PLACEHOLDER, "video_token_id": PLACEHOLDER - 1}
    fields: dict[str, Any] = {**_fields(shape), **tokens}
    model = transformers.Qwen2VLForConditionalGeneration(transformers.Qwen2VLConfig(**fields))
    ids = _prompts(PLACEHOLDER, 36)
    types = (ids == PLACEHOLDER).int()
    return _ready(model), {"input_ids": ids, "mm_token_type_ids": types, **media(shape, 2, seed=0)}


TINY_MODELS: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "LLaVA of transformers": transformers_llava,
    "LLaVA of this project": own_llava,
    "Qwen2-VL": qwen2_vl,
}


def _prompts(token: int, count: int) -> Tensor:
    """[2, L]: the start of a prompt, the placeholders of one image, and a question."""
    start, question = torch.tensor([[1, 5], [1, 6]]), torch.tensor([[7, 8, 9], [20, 21, 22]])
    return torch.cat([start, torch.full((2, count), token), question], dim=1)


def _ready(model: Any) -> Any:
    draw_weights(model, seed=0)
    return model.eval()
