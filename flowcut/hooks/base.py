"""What the parts that change a model have in common: everything done is undone in reverse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Stage:
    """Hooks on one part of a model. Derive, and have `install` note in `undo` how to take each one off."""

    def __init__(self) -> None:
        self.undo: list[Callable[[], None]] = []

    def install(self) -> None:
        raise NotImplementedError

    def around(self, module: nn.Module, enter: Callable[..., Any], leave: Callable[..., Any]) -> None:
        """Call `enter` before each forward of a module and `leave` after it, after an error too."""
        self.undo.append(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
        self.undo.append(module.register_forward_hook(leave, with_kwargs=True, always_call=True).remove)

    def replace(self, module: Any, name: str, value: Any) -> None:
        """Put a value in the place of a method or attribute of this one instance."""
        before = module.__dict__.get(name)
        module.__dict__[name] = value
        if before is None:
            self.undo.append(lambda: module.__dict__.pop(name))
        else:
            self.undo.append(lambda: module.__dict__.update({name: before}))

    def remove(self) -> None:
        while self.undo:
            self.undo.pop()()
