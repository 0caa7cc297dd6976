"""Functions of tensors compiled by torch.compile, where there is a compiler."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

_LOG = logging.getLogger(__name__)


class Fused:
    """A pure function, compiled for any number of tokens; as it is, after one line in the log, where that fails."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.compiled: Callable[..., Any] | None = torch.compile(function, dynamic=True)

    def __call__(self, *args: Any) -> Any:
        if self.compiled is None:
            return self.function(*args)
        from torch._dynamo.exc import TorchDynamoException  # there by now; seconds to import otherwise

        try:
            return self.compiled(*args)
        except TorchDynamoException as error:
            reason = " ".join(str(error).split())[:120]
            _LOG.warning("compile=True has no effect, because %s: %s", type(error).__name__, reason)
            self.compiled = None
            return self.function(*args)


@lru_cache
def fused(function: Callable[..., Any]) -> Fused:
    """The compiled form of a function, one for all models."""
    return Fused(function)
