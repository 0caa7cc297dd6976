"""What the caller of a model knows and its hooks do not: which rows are one image, and what is asked about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor

from flowcut.hooks.session import Session
from flowcut.pruner import Question, TextEncoder
from flowcut.trace import Trace


@dataclass
class KnownRows:
    """What the caller of an encoder knows about its rows; see `flowcut.pruner.Rows` for `groups` and `tiles`.

    Attributes:
        skip: leave this call alone.
        unpruned_tokens: how many tokens a row is for the unpruned language model; None for as many as its grid has.
        trace: filled by the encoder's forward, if a pruner is attached.
    """

    groups: tuple[int, ...] | None = None
    tiles: tuple[int, ...] = ()
    skip: bool = False
    unpruned_tokens: int | None = None
    trace: Trace | None = None


_PROMPT: ContextVar[Prompt | None] = ContextVar("flowcut_prompt", default=None)
_ROWS: ContextVar[KnownRows | None] = ContextVar("flowcut_rows", default=None)
_ASKED: ContextVar[tuple[Session, Question] | None] = ContextVar("flowcut_asked", default=None)


@contextmanager
def rows(
    groups: Sequence[int] | None = None, spread: bool = False, skip: bool = False, unpruned_tokens: int | None = None
) -> Iterator[KnownRows]:
    """Tell an attached pruner, around a call of an encoder, which rows belong to one image.

    Args:
        groups: number of the image or video of each row; every row by itself if None.
        spread: whether the rows of a group are tiles that share one image's budget (else frames, with a budget each).
        skip: do not prune in this call.
        unpruned_tokens: how many tokens a row is for the unpruned language model, if not as many as its grid has.
    """
    known = KnownRows(None if groups is None else tuple(groups), skip=skip, unpruned_tokens=unpruned_tokens)
    if groups is not None:
        known.tiles = tuple(list(groups).count(group) if spread else 1 for group in groups)
    token = _ROWS.set(known)
    try:
        yield known
    finally:
        _ROWS.reset(token)


def known_rows() -> KnownRows | None:
    """What the caller says with `rows`."""
    return _ROWS.get()


@dataclass(frozen=True)
class Prompt:
    """The prompt of the images that are being encoded: token ids [B, S], or embeddings [B, S, D]."""

    input_ids: Tensor | None
    inputs_embeds: Tensor | None = None


@contextmanager
def prompted(input_ids: Tensor | None, inputs_embeds: Tensor | None = None) -> Iterator[None]:
    """Tell, around the encoding of images, in which prompt they stand; `prompt_under_way` finds it."""
    token = _PROMPT.set(Prompt(input_ids, inputs_embeds))
    try:
        yield
    finally:
        _PROMPT.reset(token)


def prompt_under_way() -> Prompt | None:
    """What the caller says with `prompted`."""
    return _PROMPT.get()


@contextmanager
def asked(handle: Session, texts: str | Sequence[str], tower: TextEncoder) -> Iterator[Question]:
    """Tell an attached pruner, around a call of its model, what is asked about the images that the call brings.

    Args:
        handle: of `attach`.
        texts: the question; or one for each image (or video) of the call, in their order, a question about several
            images as often as it has images.
        tower: CLIP's text encoder; see `TextTower.find`.

    Raises:
        ValueError: there is no text.
    """
    question = Question((texts,) if isinstance(texts, str) else tuple(texts), tower)
    if not question.texts:
        raise ValueError("no text was given; ask at least one question, such as asked(handle, 'What is this?', tower)")
    token = _ASKED.set((handle, question))
    try:
        yield question
    finally:
        _ASKED.reset(token)


def question_about(session: Session) -> Question | None:
    """What `asked` says for this session, if it is open."""
    found = _ASKED.get()
    return found[1] if found is not None and found[0] is session else None
