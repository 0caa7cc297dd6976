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

from flowcut.pruner import Pruner
from flowcut.registry import parse_pruner, pruner_to_text
from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.eval.models.llava_answerer import LlavaAnswerer
from llava.eval.models.llava_checkpoint import Checkpoint
from llava.eval.models.reply import Generation
from llava.mm_utils import tokenizer_image_token
from llava.serve.answer_stats import AnswerStats, answer_stats_of, kept_of
from llava.serve.limits import PATIENCE
from llava.serve.runs import PromptTooLong, Room, Run, runnable_methods
from llava.serve.stream import TokenStream

logger = logging.getLogger(__name__)

GREEDY_BELOW = 0.001  # LLaVA samples above this temperature
EXCEEDS = "Exceeds max token length. Please start a new conversation, thanks."
PICTURE_NEEDED = "this model was trained on questions about pictures only; add a picture to the question"
KEEP_ALIVE = 5.0  # seconds without new text after which the last progress is repeated


@dataclass(frozen=True)
class ChatPrompt:
    """A prompt with one `<image>` per picture, and how to answer it.

    pruner: text such as "flowcut:budget=64", or "none"; None uses the engine's default. stop: texts that end the answer
    and are not part of it. seed: for temperatures above 0; None keeps the generator's state. trace: also return
    the kept patches. rounds: after the answer, time the first token that often, see `Engine`. against: the pruner that
    it is compared with, as text; None to time this question's alone. cancelled: set from any thread, it ends the
    generation, as closing the iterator of `Engine.ask` does.
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
    rounds: int = 0
    against: str | None = None
    cancelled: threading.Event | None = None


@dataclass(frozen=True)
class Progress:
    """The answer so far. The last one has `figures`, and `kept` (see `kept_of`) if the question requests a trace."""

    text: str
    figures: AnswerStats | None = None
    kept: dict[str, Any] | None = None


class _Started:
    """The generation of this question has begun."""


class Engine:
    """Answers one question at a time, because a pruner is attached to the model itself.

    pruner: for questions without one; None uses the pruner that the checkpoint was trained with, if any.
    interval: new tokens between two updates. needs_picture: refuse questions without one, for a model that was trained
    on pictures only.

    An answer's own times include whatever is slow at a first call. For a question with `rounds`, the first token is
    timed with its pruner and with the one it is compared with, in turns, once to warm up and then `rounds` times;
    `figures.comparison` has the medians. The model is not free for other questions meanwhile.

    Raises ValueError, one line, for a pruner that is unknown or does not fit the model.
    """

    def __init__(
        self, checkpoint: Checkpoint, pruner: str | None = None, interval: int = 1, needs_picture: bool = False
    ) -> None:
        self.checkpoint = checkpoint
        self.pruner = _blind(LlavaAnswerer(checkpoint, pruner).pruner)
        self.interval = interval
        self.needs_picture = needs_picture
        self.budgets = runnable_methods(checkpoint.model, checkpoint.model.get_vision_tower().num_patches)
        # No token is longer, so that a text that is too long is known before it is split into tokens.
        self._longest_token = max(map(len, checkpoint.tokenizer.get_vocab()))
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
        if question.max_new_tokens == 0 or len(question.prompt) > self.context * self._longest_token:
            yield _no_room(pruner)
            return
        news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        cancelled = question.cancelled or threading.Event()
        threading.Thread(target=self._work, args=(question, pruner, news, cancelled), daemon=True).start()
        text, since = "", None
        try:
            while True:
                try:
                    item = news.get(timeout=keep_alive)
                except queue.Empty:
                    if since is not None and monotonic() - since > patience:
                        raise TimeoutError(
                            f"no new token within {patience:g} s; allow more time, or prune more tokens"
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
        if self.needs_picture and not question.images:
            raise ValueError(PICTURE_NEEDED)
        if not question.temperature >= 0:
            raise ValueError(f"temperature={question.temperature} is below 0; give 0 (greedy) or more")
        if question.top_p is not None and not 0 <= question.top_p <= 1:
            raise ValueError(f"top_p={question.top_p} is not a probability; give 0 (the most likely token) to 1")
        if question.max_new_tokens < 0:
            raise ValueError(f"max_new_tokens={question.max_new_tokens} is below 0; give 1 or more")
        if question.against is not None:
            self._asked_for(question.against)
        return self.pruner if question.pruner is None else self._asked_for(question.pruner)

    def _asked_for(self, text: str) -> Pruner | None:
        """A pruner that a question names. Raises ValueError, one line, if this service does not take it."""
        pruner = _blind(parse_pruner(text))
        if pruner is not None and pruner.reads_file and pruner != self.pruner:
            raise ValueError(f"a question's {pruner.name} cannot name a file on the server; leave the file out")
        return pruner

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
                news.put(_no_room(pruner))
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
        room = Room(self.context, question.max_new_tokens, stream, cancelled)
        temperature = question.temperature if question.temperature > GREEDY_BELOW else 0.0
        if question.top_p == 0:  # the most likely token, whatever the temperature
            temperature = 0.0
        settings = Generation(temperature, question.top_p or None, max_new_tokens=question.max_new_tokens)
        run = Run(self.checkpoint, ids, pixels, [image.size for image in question.images] or None)
        result = run(pruner, settings, room, signals=question.trace)
        stream.end(result.ids)
        finish = "cancelled" if cancelled.is_set() else stream.finish(room.left)
        figures = answer_stats_of(model, result.trace, pixels, result.watch, result.total, len(stream.ids))
        figures.pruner, figures.text_tokens, figures.finish = pruner_to_text(pruner), words, finish
        kept = kept_of(self.checkpoint, result.trace, pixels) if question.trace and pixels is not None else None
        if question.rounds and pixels is not None:
            beat = lambda: news.put(_Started())  # noqa: E731 - the caller's patience is with a single pass
            pruners = [pruner] if question.against is None else [pruner, parse_pruner(question.against)]
            figures.comparison = run.compare(pruners, question.rounds, self.context, beat, cancelled)
        return Progress(stream.text, figures, kept)

    def _prompt(self, prompt: str) -> str:
        if getattr(self.checkpoint.model.config, "mm_use_im_start_end", False):
            wrapped = DEFAULT_IM_START_TOKEN + DEFAULT_IMAGE_TOKEN + DEFAULT_IM_END_TOKEN
            return prompt.replace(wrapped, DEFAULT_IMAGE_TOKEN).replace(DEFAULT_IMAGE_TOKEN, wrapped)
        return prompt


def _no_room(pruner: Pruner | None) -> Progress:
    return Progress(EXCEEDS, AnswerStats(pruner=pruner_to_text(pruner), finish="context"))


def _blind(pruner: Pruner | None) -> Pruner | None:
    """The pruner. Raises ValueError, one line, if it reads the question, of which only the whole prompt is known."""
    if pruner is not None and pruner.reads_question:
        raise ValueError(f"{pruner.name} needs the question, which is unknown here; set condition=False")
    return pruner
