"""What the parts that change a model have in common: everything done is undone in reverse.

A copied or pickled model takes its hooks along, and what undoes them. So neither may be a closure, which would go on
speaking of the first model: they are methods, small objects, or `partial`s of functions of a module.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn


class opaque:
    """`torch.compiler.disable` for a hook that is a method.

    The compiler takes seconds to import, so that waits until the hook is first looked up, to go on a model. From then
    on the class has the method as if it had been decorated with `torch.compiler.disable`.
    """

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def __set_name__(self, owner: type, name: str) -> None:
        self.owner, self.name = owner, name

    def __get__(self, instance: Any, owner: type) -> Any:
        method = torch.compiler.disable(self.function)
        setattr(self.owner, self.name, method)
        return method.__get__(instance, owner)


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
        if name in module.__dict__:
            self.undo.append(partial(_put, module, name, module.__dict__[name]))
        else:
            self.undo.append(partial(_drop, module, name))
        _put(module, name, value)

    def remove(self) -> None:
        while self.undo:
            self.undo.pop()()


def _put(module: Any, name: str, value: Any) -> None:
    module.__dict__[name] = value


def _drop(module: Any, name: str) -> None:
    module.__dict__.pop(name, None)
