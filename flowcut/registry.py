"""Pruners by name, and their two written forms.

Command lines and result files use text (`flowcut:budget=64`; as a share of each image's tokens `flowcut:budget=0.333`),
a checkpoint's config.json a dict (`{"method": "flowcut", "budget": 64}`). Either can be made from a pruner and read
back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from flowcut.baselines.cdpruner import CDPruner
from flowcut.baselines.dart import DART
from flowcut.baselines.divprune import DivPrune
from flowcut.baselines.fastervlm import FasterVLM
from flowcut.baselines.fastv import FastV
from flowcut.baselines.hiprune import HiPrune
from flowcut.baselines.holov import HoloV
from flowcut.baselines.pdrop import PyramidDrop
from flowcut.baselines.pooling import Pooling
from flowcut.baselines.prumerge import PruMerge
from flowcut.baselines.random import Random
from flowcut.baselines.rcom import RCom
from flowcut.baselines.scope import SCOPE
from flowcut.baselines.sparsevlm import SparseVLM
from flowcut.baselines.tome import ToMe
from flowcut.baselines.uniform import Uniform
from flowcut.baselines.visionzip import VisionZip
from flowcut.baselines.vispruner import VisPruner
from flowcut.baselines.vtw import VTW
from flowcut.fields import SHARE_TOO, allowed, meanings, without_none
from flowcut.method import FlowCut
from flowcut.pruner import Budget, Pruner


@dataclass(frozen=True)
class Method:
    """A registered method: the class that holds its fields, how to make one, and what to cite."""

    cls: type[Pruner]
    make: Callable[..., Pruner]
    paper: str


METHODS: dict[str, Method] = {
    "flowcut": Method(FlowCut, FlowCut, "FlowCut, arXiv 2505.19536, as released"),
    "flowcut-paper": Method(FlowCut, FlowCut.paper, "FlowCut, arXiv 2505.19536, its equations to the letter"),
    "flowcut-qwen2-vl-released": Method(
        FlowCut, FlowCut.released_qwen2_vl, "FlowCut, arXiv 2505.19536, as released for Qwen2-VL"
    ),
    "fastv": Method(FastV, FastV, "FastV, arXiv 2403.06764"),
    "sparsevlm": Method(SparseVLM, SparseVLM, "SparseVLM, arXiv 2410.04417, as in release 1.5"),
    "sparsevlm-plus": Method(SparseVLM, SparseVLM.plus, "SparseVLM+, github.com/Gumpest/SparseVLMs, release 2.0"),
    "pdrop": Method(PyramidDrop, PyramidDrop, "PyramidDrop, arXiv 2410.17247"),
    "vtw": Method(VTW, VTW, "VTW, arXiv 2405.05803"),
    "dart": Method(DART, DART, "DART, arXiv 2502.11494"),
    "visionzip": Method(VisionZip, VisionZip, "VisionZip, arXiv 2412.04467"),
    "fastervlm": Method(FasterVLM, FasterVLM, "FasterVLM, arXiv 2412.01818"),
    "vispruner": Method(VisPruner, VisPruner, "VisPruner, arXiv 2412.01818 (version 2)"),
    "hiprune": Method(HiPrune, HiPrune, "HiPrune, arXiv 2508.00553"),
    "holov": Method(HoloV, HoloV, "HoloV, arXiv 2510.02912"),
    "prumerge": Method(PruMerge, PruMerge, "LLaVA-PruMerge, arXiv 2403.15388"),
    "prumerge_plus": Method(PruMerge, PruMerge.plus, "LLaVA-PruMerge+, arXiv 2403.15388"),
    "tome": Method(ToMe, ToMe, "ToMe, arXiv 2210.09461"),
    "rcom": Method(RCom, RCom, "Recoverable Compression, arXiv 2409.01179"),
    "divprune": Method(DivPrune, DivPrune, "DivPrune, arXiv 2503.02175"),
    "scope": Method(SCOPE, SCOPE, "SCOPE, arXiv 2510.24214"),
    "cdpruner": Method(CDPruner, CDPruner, "CDPruner, arXiv 2506.10967"),
    "random": Method(Random, Random, "control: a random subset"),
    "uniform": Method(Uniform, Uniform, "control: the middles of an even grid"),
    "pooling": Method(Pooling, Pooling, "control: means over an even grid"),
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
    types = _field_types(METHODS[name])
    values = {}
    for setting in filter(None, settings.split(",")):
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not equals or key not in types:
            raise ValueError(f"{setting!r} is no setting of {name}; write {name}:field=value with {', '.join(types)}")
        values[key] = _from_text(name, key, value, types[key])
    if "budget" not in values:
        raise ValueError(f"pruner {text!r} has no budget; write {name}:budget=64")
    return METHODS[name].make(**values)


def pruner_to_text(pruner: Pruner | None) -> str:
    """Text that `parse_pruner` reads back as an equal pruner; None gives "none".

    Raises:
        ValueError: the pruner's class is no registered method.
    """
    if pruner is None:
        return "none"
    settings = pruner_to_config(pruner)
    name = settings.pop("method")
    return f"{name}:{','.join(f'{key}={value_to_text(value)}' for key, value in settings.items())}"


def value_to_text(value: object) -> str:
    """A field's value as it stands in a pruner's text: "64", "2/8/16", "None"."""
    return "/".join(str(part) for part in value) if isinstance(value, tuple) else str(value)


def pruner_to_config(pruner: Pruner) -> dict[str, Any]:
    """A pruner as JSON values that `pruner_from_config` reads back as an equal pruner.

    The dict holds the method's name, the budget, and those fields alone that differ from the defaults of the class.
    A preset is its class with some fields set: FlowCut.paper(64) becomes `{"method": "flowcut", "budget": 64,
    "semantic_scale": "head", ...}`.

    Raises:
        ValueError: the pruner's class is no registered method.
    """
    cls = type(pruner)
    names = [name for name, method in METHODS.items() if method.cls is cls]
    if not names:
        known = ", ".join(dict.fromkeys(method.cls.__name__ for method in METHODS.values()))
        raise ValueError(f"a {cls.__name__} has no name in flowcut.registry.METHODS; register it, or use {known}")
    plain = [name for name in names if METHODS[name].make is cls]
    values = {field.name: getattr(pruner, field.name) for field in fields(pruner)}
    if plain:  # a preset alone would bring values of its own, so then every field is written
        defaults = {field.name: field.default for field in fields(pruner)}
        values = {key: value for key, value in values.items() if key == "budget" or value != defaults[key]}
    return {"method": (plain or names)[0], **values}


def pruner_from_config(config: object) -> Pruner:
    """Read a pruner from the dict that `pruner_to_config` makes; without a "method" it is "flowcut".

    Raises:
        ValueError: not a dict, unknown method, unknown or missing field, or a value that does not fit.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f'pruner {config!r} is not a dict of fields; write {{"method": "flowcut", "budget": 64}}')
    name = config.get("method", "flowcut")
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"unknown pruner method {name!r}; choose one of {', '.join(METHODS)}")
    types = _field_types(METHODS[name])
    values = {key: value for key, value in config.items() if key != "method"}
    for key, value in values.items():
        if key not in types:
            raise ValueError(f"{key!r} is no setting of {name}; choose from {', '.join(types)}")
        _check_json(name, key, value, types[key])
        values[key] = tuple(value) if isinstance(value, list) else value
    if "budget" not in values:
        raise ValueError(f'pruner {dict(config)!r} has no budget; add "budget": 64')
    return METHODS[name].make(**values)


class Setting(NamedTuple):
    """A field of a method: its default as text, which values it takes, and what it is for."""

    name: str
    default: str | None
    allowed: str
    meaning: str


def settings_of(name: str) -> list[Setting]:
    """The fields of a registered method, as `python -m flowcut list` shows them.

    `default` is None for a field that has to be given; `meaning` comes from the "Attributes" in the docstrings of the
    method's class and of those it derives from, and is empty where they say nothing.
    """
    method = METHODS[name]
    example = method.make(budget=1)  # a preset's settings, not the defaults of its class
    types, said = _field_types(method), meanings(method.cls)
    return [
        Setting(
            field.name,
            None if field.default is MISSING else value_to_text(getattr(example, field.name)),
            allowed(types[field.name]),
            said.get(field.name, ""),
        )
        for field in fields(method.cls)
    ]


def _field_types(method: Method) -> dict[str, Any]:
    """The fields a method has, in their order, with their types."""
    types = get_type_hints(method.cls)
    return {field.name: types[field.name] for field in fields(method.cls)}


def _from_text(name: str, key: str, text: str, kind: Any) -> object:
    wanted = allowed(kind)
    kind, optional = without_none(kind)
    if optional and text == "None":
        return None
    if get_origin(kind) is tuple:
        try:
            return tuple(int(part) for part in text.split("/"))
        except ValueError:
            raise ValueError(f"{name}:{key}={text} are not whole numbers; write them as in {key}=2/8/16") from None
    if kind is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
    elif kind in (int, float, Budget):
        for number in get_args(kind) or (kind,):
            with suppress(ValueError):  # text that is no whole number may be a share
                return number(text)
        raise ValueError(f"{name}:{key}={text} is not a number; {key} takes {wanted}")
    elif get_origin(kind) is Literal:
        for choice in get_args(kind):
            if text == str(choice):
                return choice
        raise ValueError(f"{name}:{key}={text} is not allowed; {key} takes {wanted}")
    else:
        return text
    raise ValueError(f"{name}:{key}={text} is neither true nor false; {key} takes {wanted}")


def _check_json(name: str, key: str, value: object, kind: Any) -> None:
    """Raise ValueError when a value read from JSON is not of the kind that a field takes."""
    kind, optional = without_none(kind)
    if optional and value is None:
        return
    number = isinstance(value, int) and not isinstance(value, bool)
    fits, wanted = True, ""
    if kind is bool:
        fits, wanted = isinstance(value, bool), "true or false"
    elif kind is int:
        fits, wanted = number, "a whole number"
    elif kind is float:
        fits, wanted = number or isinstance(value, float), "a number"
    elif kind == Budget:
        fits, wanted = number or (isinstance(value, float) and 0 < value < 1), SHARE_TOO
    elif kind is str:
        fits, wanted = isinstance(value, str), "text"
    elif get_origin(kind) is tuple:
        whole = isinstance(value, list | tuple) and all(type(part) is int for part in value)
        fits, wanted = whole, "a list of whole numbers"
    elif get_origin(kind) is Literal:
        fits, wanted = value in get_args(kind), " or ".join(repr(choice) for choice in get_args(kind))
    if not fits:
        raise ValueError(f"{name}: {key}={value!r} does not fit; give {wanted}{' (or null)' if optional else ''}")
