"""What the families' files have in common: looking through wrappers, and reading configs and decoders."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flowcut.hooks.parts import Decoder

_LAYER_ARGUMENTS = {
    *("self", "hidden_states", "attention_mask", "position_ids", "position_embeddings", "kwargs"),
    *("cache", "past_key_values", "use_cache", "cache_position", "output_attentions", "output_router_logits"),
}
"""What a decoder's layers may be called with. Another argument may have an entry for each token, to be cut as well."""


def unwrap(model: Any) -> Any:
    """The model inside of PEFT's, DDP's, DeepSpeed's and torch.compile's wrappers."""
    return copies(model)[0]


def copies(model: Any) -> list[Any]:
    """What `unwrap` finds. Where PEFT keeps copies of a module (`modules_to_save`): all, first that which runs now."""
    names = class_names(model)
    if "PeftModel" in names:
        inside = [model.get_base_model()]
    elif "PeftMixedModel" in names:
        inside = [model.base_model]
    elif names & {"DistributedDataParallel", "DataParallel", "DeepSpeedEngine", "FullyShardedDataParallel"}:
        inside = [model.module]
    elif "OptimizedModule" in names:
        inside = [model._orig_mod]
    elif "BaseTuner" in names:
        inside = [model.model]
    elif "ModulesToSaveWrapper" in names:
        saved, active = dict(model.modules_to_save), [] if model.disable_adapters else model.active_adapters
        running = saved.get(active[0], model.original_module) if active else model.original_module
        inside = [running, *(copy for copy in (*saved.values(), model.original_module) if copy is not running)]
    else:
        return [model]
    return [copy for part in inside for copy in copies(part)]


def class_names(model: nn.Module) -> set[str]:
    """Names of a model's class and all it derives from. Telling families by name needs no import of their code."""
    return {cls.__name__ for cls in type(model).__mro__}


def body_and_head(model: Any, heads: set[str], bodies: set[str]) -> tuple[Any, Any] | None:
    """Of a model for conditional generation: the model inside, and itself. Of the model inside: itself, and None.

    None if it is neither, by the names of classes.
    """
    names = class_names(model)
    if names & heads:
        return model.model, model
    return (model, None) if names & bodies else None


def feature_layer(depth: int, indices: int | Sequence[int]) -> int:
    """The layer after which an owner reads features from `hidden_states[indices]`; the earliest if it reads several."""
    indices = [indices] if isinstance(indices, int) else indices
    # hidden_states[0] is the input of layer 0, so hidden_states[i] comes out of layer i - 1.
    return min(index if index >= 0 else depth + 1 + index for index in indices) - 1


@dataclass(frozen=True)
class Projector:
    """A multimodal projector as `Encoder.project`, for an owner that reads `hidden_states[indices]`."""

    module: nn.Module
    indices: int | Sequence[int] = -1

    def __call__(self, states: Tensor) -> Tensor:
        """[R, n, D] -> [R, n, D'].

        Raises:
            ValueError: the owner reads several layers.
        """
        if not isinstance(self.indices, int) and len(self.indices) > 1:
            raise ValueError(
                f"this model projects features of layers {list(self.indices)} together; a method that reads projected "
                "tokens needs a model that reads a single layer"
            )
        weight = next(self.module.parameters(), None)
        if weight is not None:
            # Weights that accelerate keeps elsewhere lie on "meta"; its hooks bring them and the states together.
            device = states.device if weight.is_meta else weight.device
            states = states.to(device, weight.dtype if weight.is_floating_point() else None)
        return self.module(states)


def decoder_of(body: Any, head: Any = None, mrope: bool = False, from_start: bool = False) -> Decoder:
    """A decoder in the layout of transformers' Llama, Mistral, Qwen2 and their kin.

    Raises:
        ValueError: it is laid out in another way.
    """
    body, *twins = copies(body)
    layers = [unwrap(layer) for layer in getattr(body, "layers", ())]
    kinds = set(getattr(body.config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    bidirectional = getattr(body.config, "use_bidirectional_attention", None)
    known = layers and hasattr(body, "rotary_emb") and all(hasattr(layer, "self_attn") for layer in layers)
    given = {name for layer in layers for name in inspect.signature(type(layer).forward).parameters}
    if not known or kinds or bidirectional or given - _LAYER_ARGUMENTS:
        raise ValueError(
            f"no method can cut inside a {type(body).__name__}; every layer of the language model must have a causal "
            "self_attn, full or sliding, with one rotary_emb, as in Llama, Mistral and Qwen2; use a method that cuts "
            "in the encoder"
        )
    attentions = [layer.self_attn for layer in layers]
    return Decoder(body, layers, attentions, body.rotary_emb, head, mrope, twins, from_start)


def running_device(module: nn.Module) -> torch.device:
    """Where a module computes, also when accelerate keeps its weights elsewhere until they are needed."""
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for each in getattr(hook, "hooks", [hook]):
            if getattr(each, "execution_device", None) is not None:
                return torch.device(each.execution_device)
    weight = next(module.parameters(), None)
    return torch.device("cpu") if weight is None else weight.device


def language_model(body: Any, head: Any = None, mrope: bool = False, from_start: bool = False) -> dict[str, Any]:
    """The fields of an `Anatomy` that describe its decoder; its parts are looked for where a pruner cuts in it."""
    running = unwrap(body)
    return {
        "decoder_layers": running.config.num_hidden_layers,
        "decoder_model": running,
        "decoder_head": head,
        "find_decoder": partial(decoder_of, body, head, mrope, from_start),
    }
