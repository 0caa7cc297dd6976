"""Times the stages of one `generate` call by hooks, and counts the language model's visual tokens."""

from __future__ import annotations

from time import perf_counter
from typing import Any, Protocol

import torch

from flowcut.hooks.parts import Anatomy


class Clock(Protocol):
    """Records times. The time between two marks is known after `settle`."""

    def mark(self) -> Any: ...

    def between(self, begin: Any, end: Any) -> float:
        """Milliseconds."""

    def settle(self) -> None:
        """Wait for pending work."""


class WallClock:
    """For devices whose calls are synchronous."""

    def mark(self) -> float:
        return perf_counter() * 1000

    def between(self, begin: float, end: float) -> float:
        return end - begin

    def settle(self) -> None: ...


class CudaClock:
    """Events in the device's stream: marking does not synchronise, so the work is not delayed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def between(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return begin.elapsed_time(end)

    def settle(self) -> None:
        torch.cuda.synchronize(self.device)


def clock_of(device: torch.device) -> Clock:
    return CudaClock(device) if device.type == "cuda" else WallClock()


class Stopwatch:
    """Times LLaVA's classes, by hooks around the projector and the language model's first forward pass, while entered.

    Use it for one call: `start`, generate, `stop`. After `stop`, in milliseconds, 0.0 where a stage did not run:

    encode_ms: from `start` to the last projector output (vision tower and projector).
    projector_ms: part of it, in the projector; None where the projector is not timed.
    prefill_ms: the first forward pass of the language model, up to the logits.
    ttft_ms: from `start` to those logits. More than the sum of encode and prefill: it includes the insertion of visual
        tokens into the text, and the setup of generation.
    decode_ms: from there to `stop`: sampling the first token, and all later passes.
    visual_tokens: per row of the first pass.

    On CUDA, marks are events in the stream of the model's (first) device.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.clock = clock_of(model.device)
        self.encode_ms = self.prefill_ms = self.ttft_ms = self.decode_ms = 0.0
        self.projector_ms: float | None = 0.0
        self.visual_tokens: list[int] = []
        self._begin: Any = None
        self._encoded: Any = None  # the end of encoding
        self._projections: list[tuple[Any, Any]] = []
        self._projecting: Any = None
        self._prefill_begin: Any = None
        self._prefill_end: Any = None
        self._image_index: torch.Tensor | None = None  # counted at the end, because reading it synchronises
        self._undo: list[Any] = []

    def __enter__(self) -> Stopwatch:
        projector = self.model.get_model().mm_projector
        self._undo = [
            projector.register_forward_pre_hook(self._projects),
            projector.register_forward_hook(self._projected),
            self.model.register_forward_pre_hook(self._before, with_kwargs=True),
            self.model.register_forward_hook(self._after),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        while self._undo:
            self._undo.pop().remove()

    def start(self) -> None:
        self.clock.settle()
        self._begin = self.clock.mark()

    def stop(self) -> float:
        """Milliseconds since `start`."""
        end = self.clock.mark()
        self.clock.settle()
        between = self.clock.between
        if self._encoded is not None:
            self.encode_ms = between(self._begin, self._encoded)
        if self.projector_ms is not None:
            self.projector_ms = sum(between(*span) for span in self._projections)
        if self._prefill_end is not None:
            self.prefill_ms = between(self._prefill_begin, self._prefill_end)
            self.ttft_ms = between(self._begin, self._prefill_end)
            self.decode_ms = between(self._prefill_end, end)
        if self._image_index is not None:
            self.visual_tokens = (self._image_index >= 0).sum(dim=1).tolist()
        return between(self._begin, end)

    def _projects(self, *_: object) -> None:
        self._projecting = self.clock.mark()

    def _projected(self, *_: object) -> None:
        self._encoded = self.clock.mark()
        self._projections.append((self._projecting, self._encoded))

    def _before(self, model: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._prefill_begin is not None:  # a later forward pass: one token of the answer
            return
        self._prefill_begin = self.clock.mark()
        self._image_index = kwargs["image_index"]

    def _after(self, *_: object) -> None:
        if self._prefill_end is None:
            self._prefill_end = self.clock.mark()


class AnatomyStopwatch(Stopwatch):
    """For any family whose parts `flowcut.anatomy` knows.

    While entered, it has hooks at the language model's beginning and at the end of the whole model.

    encode_ms: from `start` until the language model begins: vision tower, projector, and insertion of the visual
        tokens into the prompt. prefill_ms: from there to the first logits. Both are 0.0 before the first call.
    `projector_ms` is None and `visual_tokens` stays empty: neither is measured.
    """

    def __init__(self, model: Any, anatomy: Anatomy) -> None:
        super().__init__(model)
        assert anatomy.decoder_model is not None
        self.body, self.head = anatomy.decoder_model, anatomy.decoder_head
        self.projector_ms = None

    def __enter__(self) -> AnatomyStopwatch:
        head = self.head if self.head is not None else self.body
        self._undo = [
            self.body.register_forward_pre_hook(self._begins, with_kwargs=True),
            head.register_forward_hook(self._after),
        ]
        return self

    def _begins(self, *_: object) -> None:
        if self._prefill_begin is None:  # else a later forward pass: one token of the answer
            self._prefill_begin = self._encoded = self.clock.mark()
