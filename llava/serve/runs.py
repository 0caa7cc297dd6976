"""Generation for one prompt, with any pruner: once for an answer, or several times to compare its costs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from transformers import StoppingCriteria

from flowcut import attach
from flowcut.anatomy.find import anatomy_of
from flowcut.pruner import Pruner
from flowcut.registry import METHODS, pruner_to_text
from flowcut.trace import Trace
from llava.eval.models.llava_checkpoint import Checkpoint
from llava.eval.models.reply import Generation
from llava.eval.models.stopwatch import Stopwatch
from llava.serve.stream import TokenStream

logger = logging.getLogger(__name__)


class PromptTooLong(Exception):
    """The prompt alone, with its visual tokens, fills the model's context."""


class Room(StoppingCriteria):
    """Passes on each new token, and ends an answer that is cancelled, complete, or fills the context.

    `measure` is a hook before the language model's first pass, where the number of visual tokens after tiling and
    pruning is known.
    """

    def __init__(self, context: int, asked: int, stream: TokenStream, cancelled: threading.Event) -> None:
        self.context, self.left = context, asked
        self.stream, self.cancelled = stream, cancelled
        self.prompt_tokens = 0

    def measure(self, model: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.prompt_tokens:
            return
        self.prompt_tokens = kwargs["inputs_embeds"].shape[1]
        self.left = min(self.left, self.context - self.prompt_tokens)
        if self.left < 1:
            raise PromptTooLong(f"{self.prompt_tokens} tokens do not fit into {self.context}")

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        self.stream.update(input_ids[0].tolist())  # here and not by a streamer, which may lag one token behind
        done = self.cancelled.is_set() or self.stream.stopped or len(self.stream.ids) >= self.left
        return torch.full((len(input_ids),), done, device=input_ids.device)


class Result(NamedTuple):
    """total: milliseconds."""

    ids: list[int]
    trace: Trace | None
    watch: Stopwatch
    total: float


class Run:
    """A prompt's token ids and pixels, ready to be answered. sizes: of the pictures before they became pixels."""

    def __init__(self, checkpoint: Checkpoint, ids: torch.Tensor, pixels: Any, sizes: list[Any] | None) -> None:
        self.checkpoint = checkpoint
        self.ids, self.pixels, self.sizes = ids, pixels, sizes

    def __call__(self, pruner: Pruner | None, settings: Generation, room: Room, signals: bool = False) -> Result:
        """signals: let the trace also hold what only some methods tell, see `flowcut.attach`."""
        model = self.checkpoint.model
        handle = attach(model, pruner, signals=signals) if pruner is not None else None
        measuring = model.register_forward_pre_hook(room.measure, with_kwargs=True)
        try:
            with torch.inference_mode(), Stopwatch(model) as watch:
                watch.start()
                output = model.generate(
                    self.ids.to(model.device),
                    images=self.pixels,
                    image_sizes=self.sizes,
                    attention_mask=torch.ones_like(self.ids).to(model.device),
                    pad_token_id=self.checkpoint.tokenizer.pad_token_id,
                    stopping_criteria=[room],
                    **settings.arguments(),
                )
                total = watch.stop()
        finally:
            measuring.remove()
            if handle is not None:
                handle.remove()
        return Result(output[0].tolist(), handle.trace if handle is not None else None, watch, total)

    def compare(
        self,
        pruners: Sequence[Pruner | None],
        rounds: int,
        context: int,
        beat: Callable[[], Any],
        cancelled: threading.Event,
    ) -> dict[str, Any] | None:
        """Times of the first token with each of the pruners, in turns; None if cancelled.

        Returns `rounds`, how often each was timed after one pass to warm up; and `runs`, for each pruner in the order
        given its text as `pruner`, the medians `encode_ms`, `prefill_ms` and `ttft_ms` (until the first token),
        `ttft_range_ms` (the smallest and the largest of them) and the `visual_tokens`. Where an error ends it, because
        there is an answer already, `rounds` is 0 and `problem` says why.

        beat: called after each pass.
        """
        watches: list[list[Stopwatch]] = [[] for _ in pruners]
        try:
            for number in range(rounds + 1):
                turn = list(zip(pruners, watches, strict=True))
                for pruner, found in turn if number % 2 else reversed(turn):
                    if cancelled.is_set():
                        return None
                    stream = TokenStream(self.checkpoint.tokenizer, (), 1, lambda text: None)
                    watch = self(pruner, Generation(max_new_tokens=1), Room(context, 1, stream, cancelled)).watch
                    beat()
                    if number:  # the first round warms up
                        found.append(watch)
            named = zip(pruners, watches, strict=True)
            return {"rounds": rounds, "runs": [{"pruner": pruner_to_text(one), **_medians(w)} for one, w in named]}
        except Exception as error:
            logger.warning("a comparison failed (%s: %s)", type(error).__name__, error)
            return {"rounds": 0, "problem": f"{type(error).__name__}: {' '.join(str(error).split())}"}


def _medians(watches: list[Stopwatch]) -> dict[str, Any]:
    times = {name: median(getattr(watch, name) for watch in watches) for name in ("encode_ms", "prefill_ms", "ttft_ms")}
    first = [round(watch.ttft_ms, 3) for watch in watches]
    found = {name: round(time, 3) for name, time in times.items()}
    return {**found, "ttft_range_ms": [min(first), max(first)], "visual_tokens": sum(watches[0].visual_tokens)}


def runnable_methods(model: Any, tokens: int) -> dict[str, int]:
    """The pruners that fit a model with their default settings and need nothing but pictures, each with the smallest
    budget that it can meet for a picture of so many tokens.
    """
    shape = anatomy_of(model).shape
    found = {}
    for name, method in METHODS.items():
        pruner = method.make(budget=64)
        try:
            pruner.check(shape)
        except ValueError:
            continue
        if not pruner.reads_question:
            found[name] = pruner.least_budget(tokens, shape)
    return found
