"""Pruners by name, and the text form that command lines, configs and result files use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, get_args, get_type_hints

from flowcut.baselines.fastervlm import FasterVLM
from flowcut.baselines.random import Random
from flowcut.method import FlowCut
from flowcut.pruner import Pruner


@dataclass(frozen=True)
class Method:
    """A registered method: the class that holds its fields, how to make one, and what to cite."""

    cls: type[Pruner]
    make: Callable[..., Pruner]
    paper: str


METHODS: dict[str, Method] = {
    "flowcut": Method(FlowCut, FlowCut, "FlowCut, arXiv 2505.19536, as released"),
    "flowcut-paper": Method(FlowCut, FlowCut.paper, "FlowCut, arXiv 2505.19536, its equations to the letter"),
    "fastervlm": Method(FasterVLM, FasterVLM, "FasterVLM, arXiv 2412.01818"),
    "random": Method(Random, Random, "control: a random subset"),
}


def parse_pruner(text: str) -> Pruner | None:
    """Read a pruner from text such as "flowcut:budget=64,batch_coupling=max"; "none" gives None.

    Raises:
        ValueError: unknown method, unknown or missing field, or a value that does not fit.
    """
    name, _, settings = text.strip().partition(":")
    if name == "none" and not settings:
        return None
    if name not in METHODS:
        raise ValueError(
            f"unknown pruner {text!r}; choose none or one of {', '.join(METHODS)} (as in flowcut:budget=64)"
        )
    method = METHODS[name]
    types = get_type_hints(method.cls)
    allowed = [field.name for field in fields(method.cls)]
    values = {}
    for setting in filter(None, settings.split(",")):
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not equals or key not in allowed:
            raise ValueError(f"{setting!r} is no setting of {name}; write {name}:field=value with {', '.join(allowed)}")
        values[key] = _value(name, key, value, types[key])
    if "budget" not in values:
        raise ValueError(f"pruner {text!r} has no budget; write {name}:budget=64")
    return method.make(**values)


def _value(name: str, key: str, text: str, kind: Any) -> object:
    if type(None) in get_args(kind):
        if text == "None":
            return None
        [kind] = [option for option in get_args(kind) if option is not type(None)]
    if kind is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
    elif kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"{name}:{key}={text} is not a number") from None
    else:
        return text
    raise ValueError(f"{name}:{key}={text} is neither true nor false")
