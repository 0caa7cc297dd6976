"""FlowCut: visual token pruning by information flow, for models of transformers and of the llava package.

with attach(model, FlowCut(budget=64)) as handle:
    model.generate(...)
handle.trace.kept
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from flowcut.compat import check_versions
from flowcut.version import __version__ as __version__

if TYPE_CHECKING:
    from flowcut.api import *  # noqa: F403

FUNCTIONS = ("asked", "attach", "detach", "flowcut", "handle_of", "paper_row", "parse_pruner")
"""What the package offers beside classes; all other names in small letters are modules."""

check_versions()


class _Package(ModuleType):
    """`flowcut.attach` is the function, whether the module of this name was imported before or not."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "attach" or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    # On first use, because torch takes seconds to import and a program's --help does not need it.
    if name in FUNCTIONS or name[0].isupper() or name == "__all__":
        offered = importlib.import_module("flowcut.api")
        if name == "__all__":
            return [*offered.__all__, "__version__"]
        if hasattr(offered, name):
            return getattr(offered, name)
    elif find_spec(f"flowcut.{name}") is not None:
        return importlib.import_module(f"flowcut.{name}")
    raise AttributeError(f"module 'flowcut' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
