"""Where each model family keeps its parts. One file per family; `anatomy_of` asks them in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from flowcut.attach import Handle


@dataclass(frozen=True)
class Encoder:
    """A vision encoder.

    Attributes:
        model: the module that is called once per batch of images and passes its keyword arguments down to its layers.
        layers: its transformer layers, in order.
        attentions: their attention modules.
        depth: how many layers the encoder has by its config, also where its owner leaves the last ones out.
        patches: patch tokens of one image.
        prefix: special tokens ahead of the patches.
        reserved: special tokens that travel on to the language model and so count in the budget.
        feature_layer: last layer that cuts may follow, because features are read after it; None where the caller picks.
    """

    model: Any
    layers: Sequence[nn.Module]
    attentions: Sequence[nn.Module]
    depth: int
    patches: int
    prefix: int
    reserved: int = 0
    feature_layer: int | None = None


@dataclass(frozen=True)
class Anatomy:
    """A model as `attach` needs to know it.

    Attributes:
        family: the family's name.
        encoder: the vision encoder.
        stages: makers of what else has to be installed, each given the handle.
    """

    family: str
    encoder: Encoder
    stages: tuple[Callable[[Handle], Any], ...] = ()


def anatomy_of(model: nn.Module) -> Anatomy:
    """Find out what a model is.

    Raises:
        ValueError: no known family, or a member of one that lacks a part.
    """
    from flowcut.anatomy import clip, llava, llava_hf

    families = (clip, llava_hf, llava)
    for family in families:
        anatomy = family.read(model)
        if anatomy is not None:
            return anatomy
    known = "; ".join(family.FAMILY for family in families)
    raise ValueError(f"{type(model).__name__} is no model family that can be pruned; known are: {known}")


def class_names(model: nn.Module) -> set[str]:
    """Names of a model's class and all it derives from. Telling families by name needs no import of their code."""
    return {cls.__name__ for cls in type(model).__mro__}
