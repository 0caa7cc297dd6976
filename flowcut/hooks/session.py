"""What the hooks on a model share: the pruner, how it was attached, and the trace of the last forward."""

from __future__ import annotations

from collections.abc import Sequence

from flowcut.pruner import ModelShape, Pruner
from flowcut.trace import StageTrace, Trace


class Session:
    """A pruner at work on a model.

    Attributes:
        pruner: the method with its settings.
        shape: the model in plain numbers.
        signals: whether intermediate scores go into the trace.
        watches_decoder: whether the pruner is asked in the language model.
        trace: what happened in the last forward that saw images; None before the first.
    """

    def __init__(self, pruner: Pruner, shape: ModelShape, signals: bool, watches_decoder: bool):
        self.pruner = pruner
        self.shape = shape
        self.signals = signals
        self.watches_decoder = watches_decoder
        self.trace: Trace | None = None

    def encoded(self, trace: Trace) -> None:
        """An encoder has run."""
        self.trace = trace

    def decoded(self, trace: StageTrace, images: Sequence[int]) -> None:
        """A decoder has run that was shown these images, by their numbers in `Trace.tokens`."""
        if self.trace is None:  # given embeddings, whose images were encoded elsewhere
            self.trace = Trace()
        self.trace.language, self.trace.shown = trace, tuple(images)
