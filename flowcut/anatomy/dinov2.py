"""transformers' Dinov2Model: a CLS token, in one variant register tokens after it, then the patches row by row."""

from __future__ import annotations

from typing import Any

from torch import nn

from flowcut.anatomy.reading import class_names
from flowcut.hooks.parts import Anatomy, Encoder

FAMILY = "Dinov2Model, Dinov2WithRegistersModel (transformers)"
NAMES = {"Dinov2Model", "Dinov2WithRegistersModel"}


def read(model: nn.Module) -> Anatomy | None:
    return Anatomy("dinov2", (encoder_of(model),)) if class_names(model) & NAMES else None


def encoder_of(model: Any, **fields: Any) -> Encoder:
    """The parts of a Dinov2Model. `fields`: what its owner knows, such as `feature_layer`."""
    layers = list(model.encoder.layer)
    attentions = [getattr(layer.attention, "attention", layer.attention) for layer in layers]
    prefix = 1 + getattr(model.config, "num_register_tokens", 0)
    if not model.config.drop_path_rate:  # stochastic depth would scale what is merged
        fields["branches"] = [(layer.norm2, layer.layer_scale2) for layer in layers]
    return Encoder(model, layers, attentions, model.config.num_hidden_layers, num_prefix_tokens=prefix, **fields)
