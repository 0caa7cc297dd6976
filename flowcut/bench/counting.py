"""Counting what a call asks of a device: operator calls, those that do work, and waits of the host.

Counts are the same on a CPU as on a GPU, as far as the code takes the same path, and they do not depend on a machine's
load. At batch 1 they say more about a GPU than FLOPs do: an operator that does work is at least one kernel.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "_unique2", "unique_dim"}
_WAITING |= {"unique_consecutive", "repeat_interleave"}
"""Operators that give Python a number or a size that follows from values, so that it has to wait for the device."""
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
_TO_HOST = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.cpu}
_FROM_HOST = {torch.tensor, torch.as_tensor}


@dataclass
class Calls:
    """What a call asked for.

    Attributes:
        work: how often each operator did work: it was no view, and no mere allocation.
        views: how many calls were views or allocations.
        waits: how often each operation made the host wait, on a GPU: it reads a value, gives a tensor whose size
            follows from values, or copies from or to memory of the host without `non_blocking`.
    """

    work: Counter[str] = field(default_factory=Counter)
    views: int = 0
    waits: Counter[str] = field(default_factory=Counter)

    @property
    def operators(self) -> int:
        """All operator calls."""
        return self.work.total() + self.views


@contextmanager
def counting() -> Iterator[Calls]:
    """Count while the block runs, without gradients. Composite operators are counted by their parts, as a GPU runs."""
    calls = Calls()
    with torch.inference_mode(False), torch.no_grad(), _Functions(calls), _Operators(calls):
        yield calls


def count(call: Callable[[], Any]) -> Calls:
    """What `call` asks for; see `counting`."""
    with counting() as calls:
        call()
    return calls


def count_waits_of_gpu(call: Callable[[], Any]) -> int:
    """How often CUDA itself says that `call` waited."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught, torch.inference_mode():
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("synchroniz" in str(warning.message) for warning in caught)


class _Operators(TorchDispatchMode):
    def __init__(self, calls: Calls):
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        masked = name in _INDEXING and any(getattr(leaf, "dtype", None) == torch.bool for leaf in tree_leaves(args[1]))
        if name in _WAITING or masked:
            self.calls.waits[name] += 1
        if _works(func, name, given, output):
            self.calls.work[name] += 1
        else:
            self.calls.views += 1
        return output


def _works(func: Any, name: str, given: list[Tensor], output: Any) -> bool:
    """Whether an operator computes or copies something; judged by whose memory its results lie in."""
    made = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    if func._schema.is_mutable or not made:
        return bool(given)
    if name.startswith(("empty", "new_empty")):
        return False
    before = {leaf.untyped_storage()._cdata for leaf in given}
    return any(leaf.untyped_storage()._cdata not in before for leaf in made if leaf.numel())


class _Functions(TorchFunctionMode):
    """What does not reach an operator on a CPU: copies between a device and the host."""

    def __init__(self, calls: Calls):
        super().__init__()
        self.calls = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in _TO_HOST:
            self.calls.waits[func.__name__] += 1
        elif func in _FROM_HOST and given.get("device") is not None and not isinstance(args[0], Tensor):
            self.calls.waits["copy to the device"] += 1
        elif func is Tensor.to and given.get("non_blocking"):
            self.calls.work["copy to the device"] += 1
        elif func is Tensor.to and "cpu" in map(str, (*args[1:], *given.values())):
            self.calls.waits["copy to the host"] += 1
        return func(*args, **given)
