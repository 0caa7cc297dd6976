"""The named attention that lets a pruner see q, k, v while sdpa, flash or eager does the work.

transformers looks attention functions up by the name in an attention module's config. For each implementation a model
may run, one name is registered that first hands q, k, v to whoever observes this module in the present forward, and
then calls that implementation. Without an observer a call goes straight through, and so does the recomputation of a
checkpointed layer, which happens outside of the forward.

Rows of different length may come as one packed sequence: then the attention mask is a `Segments`, and each row is
attended to by itself. Nothing is padded, and nothing is computed that a row alone would not compute. A mask may also
come inside of a `flowcut.hooks.merge_before_mlp.LayerContext`, with the sizes that tokens have as keys.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from flowcut.hooks.merge_before_mlp import LAYER_CONTEXT, LayerContext, weighed


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


class Segments(tuple[int, ...]):
    """In the place of an attention mask: lengths of the rows that lie one after the other in a packed sequence."""


class Tap:
    """Makes attention modules show q, k, v to the forward that observes them, until it is removed.

    Only these modules see another config (a copy that differs in the attention's name): configs are shared between
    submodules and between models.

    Raises:
        ValueError: the attention implementation is one that cannot be tapped.
    """

    def __init__(self, attentions: Iterable[nn.Module]):
        self.originals: list[tuple[Any, Any]] = [(module, module.config) for module in attentions]
        self.bases: set[str] = set()
        copies: dict[int, Any] = {}
        for module, config in self.originals:
            if id(config) not in copies:
                base = config._attn_implementation or "eager"
                _check(base, module)
                self.bases.add(base)
                copies[id(config)] = copy.copy(config)
                copies[id(config)]._attn_implementation_internal = _tapped_name(base)
        for module, config in self.originals:
            module.config = copies[id(config)]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for base in self.bases:
            _tapped_name(base)  # the process that a pickled model comes to may not know the name yet

    def remove(self) -> None:
        for module, config in self.originals:
            module.config = config


def _check(base: str, module: nn.Module) -> None:
    if base != "eager" and base not in ALL_ATTENTION_FUNCTIONS:
        raise ValueError(
            f"attention implementation {base!r} cannot be tapped; load the model with attn_implementation='sdpa'"
        )
    if base == "eager":
        _eager(module)


def _tapped_name(base: str) -> str:
    """The name under which transformers finds an implementation that is tapped; registered at the first need."""
    name = f"flowcut_{base}"
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _tapped(base))
    return name


def _tapped(base: str) -> Callable[..., Any]:
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
        if log_sizes is not None:
            kwargs["scaling"] = kwargs.get("scaling") or query.shape[-1] ** -0.5
            query, key, value = weighed(query, key, value, log_sizes, kwargs["scaling"])
            output, weights = attend(module, query, key, value, attention_mask, **kwargs)
            return output[..., :width], weights
        return attend(module, query, key, value, attention_mask, **kwargs)

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
        function = _eager(module) if base == "eager" else ALL_ATTENTION_FUNCTIONS[base]
        bare: Any = _Untapped(module, base) if "flash" in base else module
        if not isinstance(attention_mask, Segments):
            return function(bare, query, key, value, attention_mask, **kwargs)
        if "flash" in base:
            return function(bare, query, key, value, None, **kwargs | _variable_length(attention_mask, query.device))
        rows = zip(*(tensor.split(attention_mask, dim=2) for tensor in (query, key, value)), strict=True)
        return torch.cat([function(bare, q, k, v, None, **kwargs)[0] for q, k, v in rows], dim=1), None

    return attention


def _variable_length(segments: Segments, device: torch.device) -> dict[str, Any]:
    """What flash attention needs to attend within segments only."""
    starts = torch.tensor((0, *segments), device=device).cumsum(0, dtype=torch.int32)
    longest = max(segments)
    lengths = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": longest, "max_length_k": longest}
    return {**lengths, "is_causal": False}


class _Untapped:
    """An attention module as flash attention wants to see it: with the real name of its implementation."""

    def __init__(self, module: nn.Module, base: str):
        self.module = module
        self.config: Any = copy.copy(module.config)
        self.config.__dict__["_attn_implementation_internal"] = base

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


def _eager(module: nn.Module) -> Callable[..., Any]:
    """The eager attention of the file a module's class was written in; transformers keeps it out of its mapping."""
    for cls in type(module).__mro__:
        function = getattr(sys.modules[cls.__module__], "eager_attention_forward", None)
        if function is not None:
            return function
    raise ValueError(f"{type(module).__name__} has no eager attention to tap; use attn_implementation='sdpa'")
