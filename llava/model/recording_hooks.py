"""transformers' hooks that record hidden states, as objects that can be copied and pickled.

transformers installs them as closures, and a model that holds a closure cannot be pickled, nor saved whole.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from transformers.utils.output_capturing import install_output_capuring_hook, maybe_install_capturing_hooks


class RecordingHook:
    """One of transformers' recording hooks, known by what it is made of.

    Args:
        key: which output it records, such as "hidden_states".
        index: where that stands in what the module returns.
        first: whether the first module's input is recorded too.
    """

    def __init__(self, key: str, index: int, first: bool):
        self.made_of = key, index, first
        aside = nn.Module()
        install_output_capuring_hook(aside, key, index, first)
        [self.record] = aside._forward_hooks.values()

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.record(module, args, output)

    def __reduce__(self) -> tuple[type[RecordingHook], tuple[str, int, bool]]:
        return type(self), self.made_of


def install_recording_hooks(model: Any) -> None:
    """Have transformers install its hooks on a model, and put objects in their places."""
    maybe_install_capturing_hooks(model)
    for module in model.modules():
        for number, hook in module._forward_hooks.items():
            if getattr(hook, "__module__", None) == install_output_capuring_hook.__module__:
                known = inspect.getclosurevars(hook).nonlocals
                module._forward_hooks[number] = RecordingHook(
                    known["key"], known["index"], known["capture_initial_hidden_state"]
                )
