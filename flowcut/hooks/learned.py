"""A method's own weights, which are a submodule of the encoder while the method is attached."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
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


@contextmanager
def learning(encoder: nn.Module) -> Iterator[None]:
    """Where scores are computed with gradients for the weights on an encoder, if there are some.

    A checkpointed layer calls no pruner when it is computed again. So what its scores keep for the backward pass must
    not be dropped and counted with the rest of the layer, and the gradients are needed in the first run already.
    """
    if learned_on(encoder) is None or torch.is_inference_mode_enabled():
        yield
        return
    with saved_tensors_hooks(_same, _same), torch.enable_grad():
        yield


def needs_gradient(encoder: nn.Module, hidden: Tensor) -> None:
    """Have checkpointed layers compute gradients where nothing before them is trained: they look at their input."""
    if learned_on(encoder) is not None and torch.is_grad_enabled() and not hidden.requires_grad:
        hidden.requires_grad_()


def _same(tensor: Tensor) -> Tensor:
    return tensor
