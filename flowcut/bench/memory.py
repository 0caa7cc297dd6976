"""The most memory that activations take in a call."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operators returned and that still live; `peak` is the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.note((args, kwargs), new=False)  # what was there before, such as weights
        output = func(*args, **(kwargs or {}))
        self.note(output, new=True)
        return output

    def note(self, tree: Any, new: bool) -> None:
        for storage in [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]:
            if storage._cdata not in self.known:
                size = storage.nbytes() if new else 0
                self.known.add(storage._cdata)
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self.free, storage._cdata, size)

    def free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def peak_memory_mb(call: Callable[[], Any], device: torch.device) -> float:
    """Activations of a call at their most, in MB of 10^6 bytes; see the top of this file."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    # Inference mode would hide what happens inside of composite operators.
    with torch.inference_mode(False), torch.no_grad(), LiveBytes() as memory:
        call()
    return memory.peak / 1e6
