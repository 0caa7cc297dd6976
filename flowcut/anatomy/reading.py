"""What the families' files have in common: looking through wrappers, and reading configs and decoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from flowcut.hooks.parts import Decoder


def unwrap(model: Any) -> Any:
    """The model inside of PEFT's, DDP's, DeepSpeed's and torch.compile's wrappers."""
    while True:
        names = class_names(model)
        if "PeftModel" in names:
            model = model.get_base_model()
        elif names & {"DistributedDataParallel", "DataParallel", "DeepSpeedEngine", "FullyShardedDataParallel"}:
            model = model.module
        elif "OptimizedModule" in names:
            model = model._orig_mod
        else:
            return model


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
            states = states.to(weight.device, weight.dtype if weight.is_floating_point() else None)
        return self.module(states)


def decoder_of(body: Any, head: Any = None, mrope: bool = False) -> Decoder:
    """A decoder in the layout of transformers' Llama, Mistral, Qwen2 and their kin.

    Raises:
        ValueError: it is laid out in another way.
    """
    body = unwrap(body)
    layers = [unwrap(layer) for layer in getattr(body, "layers", ())]
    if not layers or not hasattr(body, "rotary_emb") or not all(hasattr(layer, "self_attn") for layer in layers):
        raise ValueError(
            f"a {type(body).__name__} as language model cannot be cut in; known are those whose layers all have a "
            "self_attn, with one rotary_emb, such as Llama, Mistral and Qwen2; use a method that cuts in the encoder"
        )
    return Decoder(body, layers, [layer.self_attn for layer in layers], body.rotary_emb, head, mrope)


def language_model(body: Any, head: Any = None, mrope: bool = False) -> dict[str, Any]:
    """The fields of an `Anatomy` that describe its decoder; its parts are looked for where a pruner cuts in it."""
    body = unwrap(body)
    return {
        "decoder_layers": body.config.num_hidden_layers,
        "decoder_model": body,
        "decoder_head": head,
        "find_decoder": partial(decoder_of, body, head, mrope),
    }
