"""Access to whole weights that DeepSpeed's ZeRO stage 3 partitions over the processes.

A partitioned parameter has an empty tensor as its data, except where a forward uses it. These functions have no effect
on ordinary parameters, and without DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def is_partitioned(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id")


def full_size(parameter: Any) -> int:
    """Number of elements of the whole parameter; bitsandbytes packs two of 4 bits into one."""
    if is_partitioned(parameter):
        return parameter.ds_numel
    return parameter.numel() * (2 if type(parameter).__name__ == "Params4bit" else 1)


@contextmanager
def whole(parameters: Iterable[nn.Parameter], write: bool = False) -> Iterator[None]:
    """Inside the block, every process has the whole parameters; all processes have to enter it.

    write: afterwards the changes of the first process apply to all; otherwise changes are lost.
    """
    partitioned = [parameter for parameter in parameters if is_partitioned(parameter)]
    if not partitioned:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0 if write else None):
        yield
