"""Times one `generate` call from the outside, and reads off what the language model was given."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch


class Stopwatch:
    """Hooks at the projector's end and around the first forward pass of the language model, while it is entered.

    encode_ms: from `start` to the last projector output (vision tower and projector).
    prefill_ms: the first forward pass. Both 0.0 while nothing was seen.
    visual_tokens: per row of that pass.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.encode_ms = self.prefill_ms = 0.0
        self.visual_tokens: list[int] = []
        self._begin = self._prefill_begin = 0.0
        self._undo: list[Any] = []

    def __enter__(self) -> Stopwatch:
        self._undo = [
            self.model.get_model().mm_projector.register_forward_hook(self._projected),
            self.model.register_forward_pre_hook(self._before, with_kwargs=True),
            self.model.register_forward_hook(self._after),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        while self._undo:
            self._undo.pop().remove()

    def start(self) -> None:
        self._begin = self._now()

    def stop(self) -> float:
        """Milliseconds since `start`."""
        return self._now() - self._begin

    def _now(self) -> float:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return perf_counter() * 1000

    def _projected(self, *_: object) -> None:
        self.encode_ms = self._now() - self._begin

    def _before(self, model: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.visual_tokens:  # a later forward pass: one token of the answer
            return
        self.visual_tokens = (kwargs["image_index"] >= 0).sum(dim=1).tolist()
        self._prefill_begin = self._now()

    def _after(self, *_: object) -> None:
        if not self.prefill_ms:
            self.prefill_ms = self._now() - self._prefill_begin
