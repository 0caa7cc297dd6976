"""A method's own weights, which are a submodule of the encoder while the method is attached."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from flowcut.hooks.base import Stage

LEARNED = "flowcut_learned"
"""Name of the submodule, and so part of its weights' names."""


def learned_on(encoder: nn.Module) -> Any:
    """The weights on an encoder; None if there are none."""
    return encoder._modules.get(LEARNED)


def add_learned(stage: Stage, encoder: Any, learned: nn.Module | None) -> None:
    """Make weights a part of an encoder until the stage is removed."""
    if learned is not None:
        encoder.add_module(LEARNED, learned.to(encoder.device if encoder.device.type != "meta" else "cpu"))
        stage.undo.append(partial(_remove, encoder))


def _remove(encoder: nn.Module) -> None:
    encoder._modules.pop(LEARNED, None)


def learning(encoder: nn.Module) -> AbstractContextManager[Any]:
    """Where scores are computed with gradients for the weights on an encoder, if there are some.

    A checkpointed layer calls no pruner when it is computed again, so what its scores keep for the backward pass must
    not be dropped and counted with the rest of the layer.
    """
    return nullcontext() if learned_on(encoder) is None else saved_tensors_hooks(_same, _same)


def _same(tensor: Tensor) -> Tensor:
    return tensor
