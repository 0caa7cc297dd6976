"""Pruners by name, and their two written forms.

Command lines and result files use text (`flowcut:budget=64`; as a share of each image's tokens `flowcut:budget=0.333`),
a checkpoint's config.json a dict (`{"method": "flowcut", "budget": 64}`). Either can be made from a pruner and read
back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, get_type_hints

from flowcut import methods, plugins
from flowcut.pruner import Pruner
from flowcut.pruner.fields import allowed, check_json, field_from_text, meanings
from flowcut.registered import Setting


@dataclass(frozen=True)
class Method:
    """A registered method: the class that holds its fields, how to make one, and what to cite."""

    cls: type[Pruner]
    make: Callable[..., Pruner]
    paper: str


def _registered() -> dict[str, Method]:
    """Every method of `flowcut.methods` and its presets, in the order in which they stand there."""
    found: dict[str, Method] = {}
    for cls in vars(methods).values():
        if isinstance(cls, type) and issubclass(cls, Pruner):
            found |= _entries(cls)
    return found


def _entries(cls: type[Pruner]) -> dict[str, Method]:
    """A class and its presets, by name."""
    own = {cls.name: Method(cls, cls, cls.reference or f"{cls.__module__}.{cls.__qualname__}")}
    presets = {name: Method(cls, getattr(cls, maker), reference) for name, (maker, reference) in cls.presets.items()}
    return own | presets


METHODS = _registered()


def register(cls: type[Pruner]) -> type[Pruner]:
    """Give a method of another package its text form, and a place in lists; works as a decorator too.

    The same class may be registered again, so may its new version from the same module (a notebook's cell that runs
    twice).

    Raises:
        ValueError: it is no pruner that can be registered, or its name is taken.
    """
    plugins.check_class(cls)
    entries = _entries(cls)
    for name in entries:
        known = METHODS.get(name)
        if known is not None and (known.cls.__module__, known.cls.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"{cls.__name__} has the name {name!r}, which {known.cls.__name__} has; choose another")
    METHODS.update(entries)
    return cls


def method_named(name: str) -> Method | None:
    """The method of that name: a registered one, else one that an installed package declares as an entry point."""
    if name not in METHODS and name in plugins.declared():
        register(plugins.load(name))
    return METHODS.get(name)


def all_names() -> list[str]:
    """Names of registered methods, then of those that installed packages declare and nobody has used yet."""
    return list(dict.fromkeys([*METHODS, *plugins.declared()]))


def parse_pruner(text: str) -> Pruner | None:
    """Read a pruner from text such as "flowcut:budget=64,batch_coupling=max"; "none" gives None.

    Raises:
        ValueError: unknown method, unknown or missing field, or a value that does not fit.
    """
    name, _, settings = text.strip().partition(":")
    if name == "none" and not settings:
        return None
    method = method_named(name)
    if method is None:
        raise ValueError(
            f"unknown pruner {text!r}; choose none or one of {', '.join(all_names())} (as in flowcut:budget=64)"
        )
    types = _field_types(method)
    values = {}
    for setting in filter(None, settings.split(",")):
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not equals or key not in types:
            known = ", ".join(types)
            raise ValueError(f"{setting!r} is not a setting of {name}; write {name}:field=value with {known}")
        values[key] = field_from_text(name, key, value, types[key])
    if "budget" not in values:
        raise ValueError(f"pruner {text!r} has no budget; write {name}:budget=64")
    return method.make(**values)


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
        raise ValueError(
            f"a {cls.__name__} has no name in flowcut.registry.METHODS; call flowcut.registry.register on its class, "
            f"or use {known}"
        )
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
    method = method_named(name) if isinstance(name, str) else None
    if method is None:
        raise ValueError(f"unknown pruner method {name!r}; choose one of {', '.join(all_names())}")
    types = _field_types(method)
    values = {key: value for key, value in config.items() if key != "method"}
    for key, value in values.items():
        if key not in types:
            raise ValueError(f"{key!r} is not a setting of {name}; choose from {', '.join(types)}")
        check_json(name, key, value, types[key])
        values[key] = tuple(value) if isinstance(value, list) else value
    if "budget" not in values:
        raise ValueError(f'pruner {dict(config)!r} has no budget; add "budget": 64')
    return method.make(**values)


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


# The settings behind the rows of FlowCut's tables, where something is known beyond the budget. FLOPs printed in
# table 5 tell how FastV cut (docs/cost.md); table 9 names VTW's layer. At 160 of 2880 tokens the published layers of
# SparseVLM and PyramidDrop read more on average, so others must have been used: the ones here are the nearest that meet
# it, a guess.
PAPER_ROWS: dict[tuple[str, float, int], str] = {
    ("fastv", 64, 5): "fastv:budget=64,layer=1,keep=64",
    ("fastv", 160, 5): "fastv:budget=160,layer=2,keep=160",
    ("vtw", 90, 9): "vtw:budget=90,layer=5",
    **{("sparsevlm", 160, table): "sparsevlm:budget=160,layers=1/6/15" for table in (2, 5)},
    **{("pdrop", 160, table): "pdrop:budget=160,layers=1/8/16" for table in (2, 5)},
}


def paper_row(method: str, budget: int | float, table: int = 1) -> Pruner:
    """The pruner that stands for a method's row in a table of the paper.

    Everything that is not known is the method's own published default for that budget: rows of other methods are mostly
    quoted from earlier papers, which do not say more.

    Args:
        method: a name of `METHODS`.
        budget: visual tokens as the row has them; per frame in table 4, a share of each picture's in table 3.
        table: 1 to 11.

    Raises:
        ValueError: an unknown method, or a budget that cannot be.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    pruner = parse_pruner(PAPER_ROWS.get((method, budget, table), f"{method}:budget={budget}"))
    assert pruner is not None
    return pruner
