"""transformers' SiglipVisionModel: patches row by row, no CLS token. The mean of all tokens takes its place."""

from __future__ import annotations

from typing import Any

from torch import nn

from flowcut.anatomy.reading import class_names
from flowcut.hooks.parts import Anatomy, Encoder

FAMILY = "SiglipVisionModel (transformers)"
NAMES = {"SiglipVisionModel"}


def read(model: nn.Module) -> Anatomy | None:
    return Anatomy("siglip", (encoder_of(model),)) if class_names(model) & NAMES else None


def encoder_of(model: Any, **fields: Any) -> Encoder:
    """The parts of a SiglipVisionModel. `fields`: what its owner knows, such as `feature_layer`."""
    layers = list(model.encoder.layers)
    attentions = [layer.self_attn for layer in layers]
    fields["branches"] = [(layer.layer_norm2, layer.mlp) for layer in layers]
    return Encoder(model, layers, attentions, model.config.num_hidden_layers, num_prefix_tokens=0, **fields)
