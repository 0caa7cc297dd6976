"""One model that streams answers, with a pruner per question; used by chat, worker and Cog."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import torch
from PIL import Image
from transformers import StoppingCriteria

from flowcut import attach
from flowcut.pruner import Pruner
from flowcut.registry import parse_pruner, pruner_to_text
from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.eval.models.llava_answerer import LlavaAnswerer
from llava.eval.models.llava_checkpoint import Checkpoint
from llava.eval.models.reply import Generation
from llava.eval.models.stopwatch import Stopwatch
from llava.mm_utils import tokenizer_image_token
from llava.serve.answer_stats import AnswerStats, answer_stats_of, kept_of
from llava.serve.stream import TokenStream

logger = logging.getLogger(__name__)

GREEDY_BELOW = 0.001  # LLaVA samples above this temperature
EXCEEDS = "Exceeds max token length. Please start a new conversation, thanks."
KEEP_ALIVE = 5.0  # seconds without new text after which the last progress is repeated
PATIENCE = 600.0  # seconds without a token after which a generation is aborted


@dataclass(frozen=True)
class ChatPrompt:
    """A prompt with one `<image>` per picture, and how to answer it.

    pruner: text such as "flowcut:budget=64", or "none"; None uses the engine's default. stop: texts that end the answer
    and are not part of it. seed: for temperatures above 0; None keeps the generator's state. trace: also return
    the kept patches.
    """

    prompt: str
    images: Sequence[Image.Image] = ()
    temperature: float = 1.0
    top_p: float | None = 1.0
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    pruner: str | None = None
    seed: int | None = None
    trace: bool = False


@dataclass(frozen=True)
class Progress:
    """The answer so far. The last one has `figures`, and `kept` (see `kept_of`) if the question requests a trace."""

    text: str
    figures: AnswerStats | None = None
    kept: dict[str, Any] | None = None


class PromptTooLong(Exception):
    """The prompt alone, with its visual tokens, fills the model's context."""


class _Started:
    """The generation of this question has begun."""


class _Room(StoppingCriteria):
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


class Engine:
    """Answers one question at a time, because a pruner is attached to the model itself.

    pruner: for questions without one; None uses the pruner that the checkpoint was trained with, if any.
    interval: new tokens between two updates.

    Raises ValueError, one line, for a pruner that is unknown or does not fit the model.
    """

    def __init__(self, checkpoint: Checkpoint, pruner: str | None = None, interval: int = 1) -> None:
        self.checkpoint = checkpoint
        self.pruner = LlavaAnswerer(checkpoint, pruner).pruner
        self.interval = interval
        self._lock = threading.Lock()

    @property
    def context(self) -> int:
        """Positions the model has for prompt, visual tokens and answer."""
        return getattr(self.checkpoint.model.config, "max_position_embeddings", 2048)

    def ask(
        self, question: ChatPrompt, patience: float = PATIENCE, keep_alive: float = KEEP_ALIVE
    ) -> Iterator[Progress]:
        """The growing answer; each text extends the previous one. There is an update at least every `keep_alive`
        seconds.

        patience: seconds without a new token, including the first one, after which the generation is aborted. Waiting
            for earlier questions does not count. Closing the iterator ends the generation.

        Raises ValueError for an invalid question, TimeoutError after `patience` seconds, and any error of the
        model.
        """
        pruner = self._check(question)
        news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        cancelled = threading.Event()
        threading.Thread(target=self._work, args=(question, pruner, news, cancelled), daemon=True).start()
        text, since = "", None
        try:
            while True:
                try:
                    item = news.get(timeout=keep_alive)
                except queue.Empty:
                    if since is not None and monotonic() - since > patience:
                        raise TimeoutError(
                            f"no new token within {patience:g} s; allow more, or cut more tokens"
                        ) from None
                    yield Progress(text)
                    continue
                since = monotonic()
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, Progress):
                    text = item.text
                    yield item
                    if item.figures is not None:
                        return
        finally:
            cancelled.set()

    def answer(self, question: ChatPrompt) -> Progress:
        """The whole answer."""
        *_, last = self.ask(question)
        return last

    def _check(self, question: ChatPrompt) -> Pruner | None:
        """Check a question; returns its pruner."""
        places = question.prompt.count(DEFAULT_IMAGE_TOKEN)
        if places != len(question.images):
            raise ValueError(f"{len(question.images)} images for {places} <image> in the prompt; give one for each")
        if not question.temperature >= 0:
            raise ValueError(f"temperature={question.temperature} is below 0; give 0 (greedy) or more")
        if question.top_p is not None and not 0 < question.top_p <= 1:
            raise ValueError(f"top_p={question.top_p} is no probability; give more than 0, up to 1")
        if question.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={question.max_new_tokens} leaves no answer; give 1 or more")
        return self.pruner if question.pruner is None else parse_pruner(question.pruner)

    def _work(
        self, question: ChatPrompt, pruner: Pruner | None, news: queue.SimpleQueue, cancelled: threading.Event
    ) -> None:
        with self._lock:
            if cancelled.is_set():
                return
            news.put(_Started())
            try:
                news.put(self._generate(question, pruner, news, cancelled))
            except PromptTooLong:
                news.put(Progress(EXCEEDS, AnswerStats(pruner=pruner_to_text(pruner), finish="context")))
            except Exception as error:  # any error is passed to the caller
                if not isinstance(error, ValueError):
                    logger.exception("a question was not answered")
                error.__traceback__ = None  # its frames hold tensors, also after an out-of-memory error
                news.put(error)

    def _generate(
        self, question: ChatPrompt, pruner: Pruner | None, news: queue.SimpleQueue, cancelled: threading.Event
    ) -> Progress:
        model, tokenizer = self.checkpoint.model, self.checkpoint.tokenizer
        ids = torch.tensor([tokenizer_image_token(self._prompt(question.prompt), tokenizer)])
        words = int((ids != IMAGE_TOKEN_INDEX).sum())
        if words >= self.context:  # checked before anything is computed
            raise PromptTooLong(f"{words} tokens do not fit into {self.context}")
        if question.seed is not None:
            torch.manual_seed(question.seed)
        pixels = self.checkpoint.pixels(question.images) if question.images else None
        stream = TokenStream(tokenizer, question.stop, self.interval, lambda text: news.put(Progress(text)))
        room = _Room(self.context, question.max_new_tokens, stream, cancelled)
        temperature = question.temperature if question.temperature > GREEDY_BELOW else 0.0
        handle = attach(model, pruner) if pruner is not None else None
        measuring = model.register_forward_pre_hook(room.measure, with_kwargs=True)
        try:
            with torch.inference_mode(), Stopwatch(model) as watch:
                watch.start()
                output = model.generate(
                    ids.to(model.device),
                    images=pixels,
                    image_sizes=[image.size for image in question.images] or None,
                    attention_mask=torch.ones_like(ids).to(model.device),
                    pad_token_id=tokenizer.pad_token_id,
                    stopping_criteria=[room],
                    **Generation(temperature, question.top_p, max_new_tokens=question.max_new_tokens).arguments(),
                )
                total = watch.stop()
            stream.end(output[0].tolist())
        finally:
            measuring.remove()
            if handle is not None:
                handle.remove()
        trace = handle.trace if handle is not None else None
        finish = "cancelled" if cancelled.is_set() else stream.finish(room.left)
        figures = answer_stats_of(model, trace, pixels, watch, total, len(stream.ids))
        figures.pruner, figures.text_tokens, figures.finish = pruner_to_text(pruner), words, finish
        kept = kept_of(self.checkpoint, trace, pixels) if question.trace and pixels is not None else None
        return Progress(stream.text, figures, kept)

    def _prompt(self, prompt: str) -> str:
        if getattr(self.checkpoint.model.config, "mm_use_im_start_end", False):
            wrapped = DEFAULT_IM_START_TOKEN + DEFAULT_IMAGE_TOKEN + DEFAULT_IM_END_TOKEN
            return prompt.replace(wrapped, DEFAULT_IMAGE_TOKEN).replace(DEFAULT_IMAGE_TOKEN, wrapped)
        return prompt
