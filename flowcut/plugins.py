"""Methods from outside of this package: entry points of installed packages, and a class in a file.

A package declares its methods in its pyproject.toml, under the names that they have in text:

    [project.entry-points."flowcut.pruners"]
    keynorm = "my_package.pruning:KeyNorm"

A package's code runs when its method is first named, not before. A file's code runs only for a program that was given
the file itself, never for the text form of a pruner, which may come from a checkpoint or over a network.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from flowcut.pruner import Pruner

GROUP = "flowcut.pruners"


@cache
def declared() -> dict[str, EntryPoint]:
    """The entry points of installed packages, by the methods' names."""
    return {point.name: point for point in entry_points(group=GROUP)}


def load(name: str) -> type[Pruner]:
    """The class behind a declared name.

    Raises:
        ValueError: it cannot be imported, is no pruner, or has another name; one line that names the package.
    """
    point = declared()[name]
    package = point.dist.name if point.dist is not None else point.module
    where = f"the method {name} of the package {package} ({point.value})"
    try:
        cls = point.load()
    except Exception as error:  # whatever its module does
        raise ValueError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
    try:
        check_class(cls)
    except ValueError as error:
        raise ValueError(f"{where} cannot be used: {error}") from error
    if cls.name != name:
        raise ValueError(f"{where} calls itself {cls.name!r}; the entry point and the class's `name` have to be equal")
    return cls


def load_file(text: str) -> type[Pruner]:
    """The class in a Python file, written as FILE.py:Class. The file is executed.

    Without ":Class" the file has to hold a single pruner.

    Raises:
        ValueError: no such file or class, or the class is no pruner; one line.
    """
    path, _, wanted = text.partition(".py:") if ".py:" in text else (text.removesuffix(".py"), "", "")
    file = Path(f"{path}.py")
    if not file.is_file():
        raise ValueError(f"{file} does not exist; give FILE.py:Class")
    name = file.stem
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses look their module up
    sys.path.insert(0, str(file.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        if before is None:
            del sys.modules[name]
        raise ValueError(f"{file} cannot be run: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(file.resolve().parent))
    own = [one for one in vars(module).values() if _is_pruner(one) and one.__module__ == name]
    if wanted and not hasattr(module, wanted):
        there = ", ".join(one.__name__ for one in own) or "none"
        raise ValueError(f"{file} has no {wanted}; its pruners: {there}")
    if not wanted and len(own) != 1:
        raise ValueError(f"{file} holds {len(own)} pruners; name one: {file}:{own[0].__name__ if own else 'Class'}")
    cls = getattr(module, wanted) if wanted else own[0]
    check_class(cls)
    return cls


def check_class(cls: Any) -> None:
    """Raise ValueError, one line, for what cannot be a method: no pruner, no dataclass, no name of its own."""
    name = vars(cls).get("name") if _is_pruner(cls) else None
    if not _is_pruner(cls):
        known = getattr(cls, "__name__", cls)
        raise ValueError(f"{known} is not a class derived from flowcut.Pruner (or Scorer, OneCut)")
    if "__dataclass_params__" not in vars(cls):  # of the class itself, not of one that it derives from
        raise ValueError(f"{cls.__name__} is not a dataclass; write @dataclass(frozen=True) above it")
    if not isinstance(name, str) or not name or set(name) & set(":,= /"):
        raise ValueError(f'{cls.__name__} has no name; add `name: ClassVar[str] = "keynorm"`, without : , = and /')


def _is_pruner(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Pruner)
