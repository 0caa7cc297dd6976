"""Prefetching of pictures by worker processes, in the questions' order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from llava.eval.media.images import decode_image, load_image
from llava.eval.questions import Question
from llava.given import one_line
from llava.mm_utils import process_images


class Picture(NamedTuple):
    """pixels: [3, H, W], or tiles [T, 3, H, W], in float32 on the CPU. size: (width, height) of the picture."""

    pixels: Tensor
    size: tuple[int, int]


class LoadedQuestion(NamedTuple):
    """A question with its pictures or videos, prepared by a `MediaReader`; `problem` is the reason if there are
    none.
    """

    question: Question
    pictures: list[Any]
    problem: str | None


class MediaReader(Protocol):
    """Reads a question's pictures or videos and prepares them for one kind of model. Worker processes get a copy."""

    def __call__(self, source: str | bytes, folder: Path) -> Any:
        """source: a path relative to `folder`, or a file's bytes. Raises ValueError, one line, for bad ones."""


@dataclass(frozen=True)
class PictureReader:
    """Pictures for LLaVA's classes."""

    image_processor: Any
    config: Any

    def __call__(self, source: str | bytes, folder: Path) -> Picture:
        image = decode_image(source) if isinstance(source, bytes) else load_image(folder / source)
        [pixels] = process_images([image], self.image_processor, self.config)
        return Picture(pixels, image.size)


class QuestionMedia(Dataset):
    """The questions' pictures or videos, and for each question its reading problem, or None."""

    def __init__(self, questions: Sequence[Question], folder: Path, reader: MediaReader) -> None:
        self.questions = list(questions)
        self.folder = folder
        self.reader = reader

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> tuple[list[Any], str | None]:
        try:
            return [self.reader(source, self.folder) for source in self.questions[index].images], None
        except Exception as error:  # of a decoder or a processor, out of memory: this question's problem alone
            return [], one_line(error)


def batches(
    questions: Sequence[Question], folder: Path, reader: MediaReader, batch_size: int, workers: int = 0
) -> Iterator[list[LoadedQuestion]]:
    """All questions in order, `batch_size` at a time; unreadable files become problems, not errors.

    workers: processes that prefetch two batches each; 0 reads in the main process.
    """
    ahead: dict[str, Any] = {"worker_init_fn": _single_thread, "prefetch_factor": 2} if workers else {}
    waiting = iter(questions)
    # Questions stay here: an object that a worker cannot send back would hang the loader (torch 2.13) instead of
    # failing.
    for batch in DataLoader(
        QuestionMedia(questions, folder, reader), batch_size, collate_fn=list, num_workers=workers, **ahead
    ):
        yield [LoadedQuestion(next(waiting), pictures, problem) for pictures, problem in batch]


def _single_thread(_: int) -> None:
    torch.set_num_threads(1)  # more threads than cores would slow the workers down
