"""The interface of answering models, and their common part: a pruner that is attached while they answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from flowcut import Handle, TextTower, asked, attach
from flowcut.pruner import Pruner
from flowcut.registry import pruner_to_text
from llava.constants import IMAGE_PLACEHOLDER
from llava.eval.media.reading import MediaReader
from llava.eval.models.reply import Generation, Reply
from llava.model.remembered_pruner import pruner_to_use


class LoadedCheckpoint(Protocol):
    """A loaded model with its tokenizer and preprocessing.

    image_processor: transformers' processor of its pictures. reader: prepares pictures and videos, in any process.
    """

    @property
    def model(self) -> Any: ...

    @property
    def name(self) -> str: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def image_processor(self) -> Any: ...

    @property
    def reader(self) -> MediaReader: ...


class Answerer(Protocol):
    """A model that answers questions about pictures, and about videos where `takes_video` says so.

    pruner, pruner_text: the pruner that is attached while it answers; None and "none" without one.
    """

    pruner: Pruner | None
    pruner_text: str
    generation: Generation

    @property
    def checkpoint(self) -> LoadedCheckpoint: ...

    @property
    def takes_video(self) -> bool: ...

    def settings(self) -> dict[str, Any]:
        """Everything that determines the answers, except the questions. JSON values only."""

    def __call__(self, texts: Sequence[str], images: Sequence[Sequence[Any]]) -> list[Reply]:
        """Answer a batch: one text each, with its pictures (RGB) and, where the model takes them, files of videos."""

    def answer(self, texts: Sequence[str], pictures: Sequence[Sequence[Any]]) -> list[Reply]:
        """Like a call, with inputs from the checkpoint's reader. A question may have no, one or several pictures or
        videos.

        Raises ValueError, one line, for a question that the model cannot process.
        """


class PrunedAnswerer:
    """The pruner of an answering model.

    pruner: "none", or text such as "flowcut:budget=64"; None uses the one that the checkpoint was trained with, if
        any. A warning reports that a checkpoint's pruner is used, or that the requested one differs from it.

    A pruner that uses the question gets the question of each picture, and needs CLIP's text encoder: the one it names,
    or one next to the vision tower. Raises ValueError for a pruner that is unknown or does not fit the model, and where
    this text encoder is missing.
    """

    def __init__(
        self, checkpoint: LoadedCheckpoint, pruner: str | None = None, generation: Generation | None = None
    ) -> None:
        self._model = checkpoint.model
        self.pruner = pruner_to_use(pruner, checkpoint.model.config, checkpoint.name, switch_off="--pruner none")
        self.pruner_text = pruner_to_text(self.pruner) if pruner is None else pruner
        self.generation = generation or Generation()
        self.text_tower: TextTower | None = None
        if self.pruner is not None:
            attach(checkpoint.model, self.pruner).remove()  # raises errors now, not after the first picture
            if self.pruner.reads_question:
                self.text_tower = TextTower.find(checkpoint.model, getattr(self.pruner, "text_tower", None))

    @contextmanager
    def pruning(self, texts: Sequence[str], pictures: Sequence[Sequence[Any]]) -> Iterator[Handle | None]:
        """The attached pruner with the question of each picture; None where there is no pruner."""
        if self.pruner is None:
            yield None
            return
        about = [text.replace(IMAGE_PLACEHOLDER, " ") for text, own in zip(texts, pictures, strict=True) for _ in own]
        with attach(self._model, self.pruner) as handle, ExitStack() as stack:
            if self.text_tower is not None and about:
                stack.enter_context(asked(handle, about, self.text_tower))
            yield handle
