"""Weights that DeepSpeed's ZeRO stage 3 has cut up over the processes, and how to reach them whole.

A partitioned parameter has an empty tensor as its data, except where a forward uses it. Everything here does nothing
for ordinary parameters, and without DeepSpeed.
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
    """Inside, every process sees the parameters whole; all processes have to come along.

    write: what the first process has written into them holds for all afterwards; otherwise writing is lost.
    """
    partitioned = [parameter for parameter in parameters if is_partitioned(parameter)]
    if not partitioned:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0 if write else None):
        yield
