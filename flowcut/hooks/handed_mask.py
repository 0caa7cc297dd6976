"""Masks for attentions whose layers take none (InternVL's): handed over past the layer.

A layer that gradient checkpointing computes again has no hooks before it then, and its mask cannot come as an argument.
So the function by which the layer is checkpointed remembers the mask that the call had, and hands it over once more.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from functools import cache, partial
from typing import Any

from torch import nn

_FUNCTION = "_gradient_checkpointing_func"
"""Attribute of transformers' layers that holds the function by which they are checkpointed."""
_MASK: ContextVar[Any] = ContextVar("flowcut_handed_mask", default=None)


def takes_mask(layer: nn.Module) -> bool:
    """Whether a layer can be called with `attention_mask`."""
    kind: Any = type(layer)
    return _takes_mask(kind)


@cache
def _takes_mask(layer: Any) -> bool:
    parameters = inspect.signature(layer.forward).parameters.values()
    return any(each.name == "attention_mask" or each.kind is each.VAR_KEYWORD for each in parameters)


def hand_over(layer: nn.Module, mask: Any) -> None:
    """Before a call of a layer: the mask that its attention is to get, None for what the layer gives it."""
    function = layer.__dict__.get(_FUNCTION)
    if function is not None and not isinstance(function, _Remembering):
        layer.__dict__[_FUNCTION] = _Remembering(function)
    _MASK.set(mask)


def receive(attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Forward pre-hook of the attention."""
    mask = _MASK.get()
    return None if mask is None else (args, {**kwargs, "attention_mask": mask})


def forget(layer: nn.Module) -> None:
    """Give a layer back the function that it is checkpointed by."""
    function = layer.__dict__.get(_FUNCTION)
    if isinstance(function, _Remembering):
        layer.__dict__[_FUNCTION] = function.original


class _Remembering:
    """In the place of a layer's checkpointing function."""

    def __init__(self, original: Callable[..., Any]):
        self.original = original

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.original(partial(_with_mask, _MASK.get(), function), *args, **kwargs)


def _with_mask(mask: Any, function: Callable[..., Any], *args: Any) -> Any:
    token = _MASK.set(mask)
    try:
        return function(*args)
    finally:
        _MASK.reset(token)
