"""The named attention that lets a pruner see q, k, v while sdpa, flash or eager does the work.

transformers looks attention functions up by the name in an attention module's config. For each implementation a model
may run, one name is registered that first hands q, k, v to the forward's run (a keyword argument that the encoder
passes down to its attention by itself) and then calls that implementation. A call without a run goes straight through,
and so does the recomputation of a checkpointed layer.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

RUN = "flowcut_run"
"""Name of the keyword argument that carries the run from the encoder's entrance down to its attention."""


def tap(attentions: Iterable[nn.Module]) -> Callable[[], None]:
    """Make attention modules show q, k, v to the run that comes along with a call. Returns the function that undoes it.

    Only these modules see another config (a copy that differs in the attention's name): configs are shared between
    submodules and between models.

    Raises:
        ValueError: the attention implementation is one that cannot be tapped.
    """
    originals: list[tuple[Any, Any]] = [(module, module.config) for module in attentions]
    copies: dict[int, Any] = {}
    for module, config in originals:
        if id(config) not in copies:
            base = config._attn_implementation or "eager"
            copies[id(config)] = copy.copy(config)
            copies[id(config)]._attn_implementation_internal = _tapped_name(base, module)
    for module, config in originals:
        module.config = copies[id(config)]

    def undo() -> None:
        for module, config in originals:
            module.config = config

    return undo


def _tapped_name(base: str, module: nn.Module) -> str:
    name = f"flowcut_{base}"
    if base != "eager" and base not in ALL_ATTENTION_FUNCTIONS:
        raise ValueError(
            f"attention implementation {base!r} cannot be tapped; load the model with attn_implementation='sdpa'"
        )
    if base == "eager":
        _eager(module)
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _tapped(base))
    return name


def _tapped(base: str) -> Callable[..., Any]:
    def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        run = kwargs.pop(RUN, None)
        if run is not None:
            run.observe(query, key, value, kwargs.get("scaling"))
        function = _eager(module) if base == "eager" else ALL_ATTENTION_FUNCTIONS[base]
        return function(module, query, key, value, *args, **kwargs)

    return attention


def _eager(module: nn.Module) -> Callable[..., Any]:
    """The eager attention of the file a module's class was written in; transformers keeps it out of its mapping."""
    for cls in type(module).__mro__:
        function = getattr(sys.modules[cls.__module__], "eager_attention_forward", None)
        if function is not None:
            return function
    raise ValueError(f"{type(module).__name__} has no eager attention to tap; use attn_implementation='sdpa'")
