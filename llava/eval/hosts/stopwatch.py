"""Times one `generate` call of any family whose parts `flowcut.anatomy` knows."""

from __future__ import annotations

from typing import Any

from flowcut.hooks.parts import Anatomy
from llava.eval.stopwatch import Stopwatch


class HostStopwatch(Stopwatch):
    """Hooks at the language model's beginning and at the end of the model around it, while it is entered.

    encode_ms: from `start` until the language model begins, that is vision tower, projector, and putting the visual
        tokens into the prompt. prefill_ms: from there to the first logits. Both 0.0 while nothing was seen.
    `projector_ms` is None and `visual_tokens` stays empty: neither is watched.
    """

    def __init__(self, model: Any, anatomy: Anatomy) -> None:
        super().__init__(model)
        assert anatomy.decoder_model is not None
        self.body, self.head = anatomy.decoder_model, anatomy.decoder_head
        self.projector_ms = None

    def __enter__(self) -> HostStopwatch:
        head = self.head if self.head is not None else self.body
        self._undo = [
            self.body.register_forward_pre_hook(self._begins, with_kwargs=True),
            head.register_forward_hook(self._after),
        ]
        return self

    def _begins(self, *_: object) -> None:
        if self._prefill_begin is None:  # else a later forward pass: one token of the answer
            self._prefill_begin = self._encoded = self.clock.mark()
