"""The named attention that lets a pruner see q, k, v while sdpa, flash or eager does the work.

transformers looks attention functions up by the name in an attention module's config. For each implementation a model
may run, one name is registered that first hands q, k, v to whoever observes this module in the present forward, and
then calls that implementation. Without an observer a call goes straight through, and so does the recomputation of a
checkpointed layer, which happens outside of the forward. The config tells that name to a tapped module while it runs,
and to everybody else the model's own.

Rows of different length may come as one packed sequence: then the attention mask is a `Segments`, and each row is
attended to by itself. Nothing is padded, and nothing is computed that a row alone would not compute. Or they come as a
batch with padding, with a `PaddedRows`. A mask may also come inside of a
`flowcut.hooks.merge_before_mlp.LayerContext`, with the sizes that tokens have as keys.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from flowcut.hooks.base import opaque
from flowcut.hooks.merge_before_mlp import LAYER_CONTEXT, LayerContext, weighed
from flowcut.pruner.cut import on_device
from flowcut.pruner.padding import Padding


class AttentionInputsCaptured(Exception):
    """Raised in place of a layer's attention; brings what it was called with."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, scaling: float):
        super().__init__("a layer was asked for its queries and keys alone")
        self.query, self.key, self.value, self.scaling = query, key, value, scaling


class Observer(Protocol):
    """A forward under way that wants to see attention inputs."""

    def observes(self, module: nn.Module) -> bool: ...

    def observe(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> None: ...


VISION: ContextVar[Any] = ContextVar("flowcut_vision", default=None)
"""The encoder forward under way in this thread, if an attached pruner watches it."""
LANGUAGE: ContextVar[Any] = ContextVar("flowcut_language", default=None)
"""The same for the decoder."""


_RUNNING: ContextVar[bool] = ContextVar("flowcut_running", default=False)
"""Whether a tapped attention module runs in this thread."""


class Segments(tuple[int, ...]):
    """In the place of an attention mask: lengths of the rows that lie one after the other in a packed sequence."""

    @cached_property
    def bounds(self) -> np.ndarray:
        """[R + 1], where rows begin, and where the last one ends."""
        return np.cumsum((0, *self), dtype=np.int32)


class PaddedRows:
    """In the place of an attention mask: where a batch has padding, to which no token attends."""

    implementations = (None, "eager", "sdpa")
    """Which of transformers' take a mask that is added to the logits."""

    def __init__(self, padding: Padding):
        self.padding = padding
        self.mask = padding.mask

    def added(self, query: Tensor) -> Tensor:
        """[R, 1, S, S], a view: what is added to the logits of queries [R, H, S, d]."""
        if self.mask.dtype != query.dtype or self.mask.device != query.device:
            self.mask = self.mask.to(query)
        return self.mask[:, None, None].expand(-1, -1, query.shape[2], -1)


class TappedConfig:
    """The model's own config as it is now; in it a tapped attention that runs finds the name of its tap.

    So `model.set_attn_implementation` takes effect at once, and stays when the tap is taken off.
    """

    def __init__(self, config: Any):
        self.config = config

    def __getattr__(self, name: str) -> Any:
        if name == "config" or name.startswith("__"):  # asked by copy and pickle while there is no config yet
            raise AttributeError(name)
        return getattr(self.config, name)

    @property
    def _attn_implementation(self) -> str:
        name = self.config._attn_implementation
        return _tapped_name(name or "eager") if _RUNNING.get() else name


def tap(attentions: Iterable[nn.Module]) -> Callable[[], None]:
    """Make attention modules show q, k, v to the forward that observes them. Returns the function that undoes it.

    Only these modules see another config: configs are shared between submodules and between models.

    Raises:
        ValueError: the attention implementation is one that cannot be tapped.
    """
    originals: list[tuple[Any, Any]] = [(module, module.config) for module in attentions]
    for module, config in originals:
        if _tapped_name(config._attn_implementation or "eager") == "flowcut_eager":
            _eager(module)
    hooks, running = [], _Running()
    for module, config in originals:
        module.config = TappedConfig(config)
        hooks.append(module.register_forward_pre_hook(running.begin))
        hooks.append(module.register_forward_hook(running.end, always_call=True))
    return partial(_untap, originals, hooks)


def _untap(originals: list[tuple[Any, Any]], hooks: list[Any]) -> None:
    for hook in hooks:
        hook.remove()
    for module, config in originals:
        module.config = config


class _Running:
    """Hooks that note whether a tapped attention module runs."""

    @opaque
    def begin(self, module: nn.Module, args: tuple) -> None:
        _RUNNING.set(True)

    @opaque
    def end(self, module: nn.Module, args: tuple, output: Any) -> None:
        _RUNNING.set(False)


def _tapped_name(base: str) -> str:
    from transformers import AttentionInterface  # by now a model is there, so this costs nothing
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = f"flowcut_{base}"
    if name in ALL_ATTENTION_FUNCTIONS:
        return name
    if base != "eager" and base not in ALL_ATTENTION_FUNCTIONS:
        raise ValueError(
            f"q, k and v of the attention implementation {base!r} cannot be read; use 'sdpa', by "
            "attn_implementation='sdpa' in from_pretrained or by model.set_attn_implementation('sdpa')"
        )
    AttentionInterface.register(name, _tapped(base, ALL_ATTENTION_FUNCTIONS))
    return name


def _tapped(base: str, functions: Any) -> Callable[..., Any]:
    """An attention function that shows its inputs and calls the one named `base` among transformers' functions."""

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kwargs: Any
    ) -> Any:
        for current in (VISION.get(), LANGUAGE.get()):
            if current is not None and current.observes(module):
                current.observe(query, key, value, kwargs.get("scaling"))
        width, log_sizes = value.shape[-1], None
        if isinstance(attention_mask, LayerContext):
            LAYER_CONTEXT.set(attention_mask)
            log_sizes, attention_mask = attention_mask.log_sizes, attention_mask.mask
        if log_sizes is not None and attention_mask is None and base in PaddedRows.implementations:
            return attend(module, query, key, value, _at_keys(log_sizes, query), **kwargs)
        if log_sizes is not None:
            kwargs["scaling"] = kwargs.get("scaling") or query.shape[-1] ** -0.5
            query, key, value = weighed(query, key, value, log_sizes, kwargs["scaling"])
            output, weights = attend(module, query, key, value, attention_mask, **kwargs)
            return output[..., :width], weights
        return attend(module, query, key, value, attention_mask, **kwargs)

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
        function = _eager(module) if base == "eager" else functions[base]
        bare: Any = _Untapped(module, base) if "flash" in base else module
        if isinstance(attention_mask, PaddedRows):
            output, weights = function(bare, query, key, value, attention_mask.added(query), **kwargs)
            blank = attention_mask.padding.beyond[:, None, :, None]
            return output, None if weights is None else weights.masked_fill(blank.to(weights.device), 0)
        if not isinstance(attention_mask, Segments):
            return function(bare, query, key, value, attention_mask, **kwargs)
        if "flash" in base:
            return function(bare, query, key, value, None, **kwargs | _variable_length(attention_mask, query.device))
        rows = zip(*(tensor.split(attention_mask, dim=2) for tensor in (query, key, value)), strict=True)
        outputs, weights = zip(*(function(bare, q, k, v, None, **kwargs) for q, k, v in rows), strict=True)
        return torch.cat(outputs, dim=1), None if weights[0] is None else _batched(weights)

    return attention


def _at_keys(log_sizes: Tensor, query: Tensor) -> Tensor:
    """[R, S] -> a mask [R, 1, S, S], a view, that adds it to the logits at each key."""
    return log_sizes.to(query)[:, None, None].expand(-1, -1, query.shape[2], -1)


def _batched(weights: Sequence[Tensor]) -> Tensor:
    """Attention weights of rows of different length, each [1, H, S, S], as a batch that is 0 on padding."""
    longest = max(one.shape[-1] for one in weights)
    padding = (longest - one.shape[-1] for one in weights)
    return torch.cat([pad(one, (0, more, 0, more)) for one, more in zip(weights, padding, strict=True)])


def _variable_length(segments: Segments, device: torch.device) -> dict[str, Any]:
    """What flash attention needs to attend within segments only."""
    starts = on_device(segments.bounds, device)
    longest = max(segments)
    lengths = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": longest, "max_length_k": longest}
    return {**lengths, "is_causal": False}


class _Untapped:
    """An attention module as flash attention wants to see it: with the real name of its implementation."""

    def __init__(self, module: Any, base: str):
        self.module = module
        self.config: Any = copy.copy(module.config.config)
        self.config.__dict__["_attn_implementation_internal"] = base

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


def _eager(module: nn.Module) -> Callable[..., Any]:
    """The eager attention of the file a module's class was written in; transformers keeps it out of its mapping."""
    for cls in type(module).__mro__:
        function = getattr(sys.modules[cls.__module__], "eager_attention_forward", None)
        if function is not None:
            return function
    raise ValueError(f"{type(module).__name__} has no eager attention that can be read; use attn_implementation='sdpa'")
