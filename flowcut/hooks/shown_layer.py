"""What layers of encoders and decoders have in common when a pruner is asked: their output, and what is recorded."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flowcut.trace import StageTrace


class ShownLayer:
    """`flowcut.pruner.source.Source`, but for `next_layer`.

    Attributes:
        states: [rows, S, D], the layer's output; None for pruners that do not read it.
        signals: where intermediate results go; None if they are not wanted.
    """

    def __init__(self, states: Tensor | None, signals: StageTrace | None):
        self.states = states
        self.signals = signals

    @property
    def hidden(self) -> Tensor:
        if self.states is None:
            raise ValueError(
                "set reads_hidden = True on the pruner's class; otherwise it runs before this layer has an output"
            )
        return self.states

    def record(self, name: str, values: Tensor, view: Any) -> None:
        if self.signals is not None:
            self.signals.note(name, values, view.layer, view.counts)
