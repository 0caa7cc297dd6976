"""transformers' CLIPVisionModel: a CLS token, then the patches row by row."""

from __future__ import annotations

from typing import Any

from torch import nn

from flowcut.anatomy import Anatomy, Encoder, class_names

FAMILY = "CLIPVisionModel (transformers)"


def read(model: nn.Module) -> Anatomy | None:
    return Anatomy("clip", encoder_of(model)) if "CLIPVisionModel" in class_names(model) else None


def encoder_of(model: Any, reserved: int = 0, feature_layer: int | list[int] | None = None) -> Encoder:
    """The parts of a CLIPVisionModel.

    Args:
        reserved: 1 if its CLS token goes to the language model too.
        feature_layer: index, or indices, into its `hidden_states` where the owner reads features.
    """
    depth = model.config.num_hidden_layers
    read_after = None
    if feature_layer is not None:
        indices = [feature_layer] if isinstance(feature_layer, int) else feature_layer
        # hidden_states[0] is the input of layer 0, so hidden_states[i] comes out of layer i - 1.
        read_after = min(index if index >= 0 else depth + 1 + index for index in indices) - 1
    return Encoder(
        model=model,
        layers=list(model.encoder.layers),
        attentions=[layer.self_attn for layer in model.encoder.layers],
        depth=depth,
        patches=(model.config.image_size // model.config.patch_size) ** 2,
        prefix=1,
        reserved=reserved,
        feature_layer=read_after,
    )
