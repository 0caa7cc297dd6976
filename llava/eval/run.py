"""A question file on its way to an answers file, a batch at a time, so that several can take turns."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

import torch

from llava.eval.answer import Answerer, Reply
from llava.eval.images import load_image
from llava.eval.journal import Journal
from llava.eval.questions import Problem, Question


class Run:
    """A question file on its way through an answerer into a journal.

    `remaining` counts the questions still to be tried, `problems` says which could not be answered.
    """

    def __init__(
        self,
        answerer: Answerer,
        questions: Sequence[Question],
        image_folder: str | Path,
        journal: Journal,
        batch_size: int = 1,
        problems: Sequence[Problem] = (),
    ) -> None:
        self.answerer = answerer
        self.questions = list(questions)
        self.image_folder = Path(image_folder).expanduser()
        self.journal = journal
        self.batch_size = batch_size
        self.problems = list(problems)
        self._pending = journal.pending(questions)
        self._model_id = answerer.checkpoint.name

    @property
    def remaining(self) -> int:
        return len(self._pending)

    def warm_up(self) -> None:
        """Answer the first question once more and forget it, so that the first timing is like the others."""
        if self._pending:
            self._answer(self._pending[: self.batch_size])

    def step(self) -> int:
        """Answer the next batch and write it down; returns how many questions were tried."""
        batch, self._pending = self._pending[: self.batch_size], self._pending[self.batch_size :]
        for question, reply in self._answer(batch, self.problems):
            self.journal.write(
                {
                    "question_id": question.question_id,
                    "prompt": question.text,
                    "text": reply.text,
                    "answer_id": self._answer_id(question),
                    "model_id": self._model_id,
                    "metadata": {"pruner": self.answerer.pruner_text, "batch": len(batch), **reply.metadata()},
                }
            )
        return len(batch)

    def finish(self) -> list[Problem]:
        """Close the answers file and return the problems."""
        self.journal.finish(self.questions, self.problems)
        return self.problems

    def _answer(self, batch: Sequence[Question], problems: list[Problem] | None = None) -> list[tuple[Question, Reply]]:
        loaded = []
        for question in batch:
            try:
                loaded.append((question, load_image(self.image_folder / question.image)))
            except ValueError as error:
                if problems is not None:
                    problems.append(Problem(f"question {question.question_id}", str(error)))
        if not loaded:
            return []
        torch.manual_seed(self.answerer.generation.seed + len(self.questions) - len(self._pending))
        replies = self.answerer([question.text for question, _ in loaded], [[image] for _, image in loaded])
        return [(question, reply) for (question, _), reply in zip(loaded, replies, strict=True)]

    def _answer_id(self, question: Question) -> str:
        """Short and unique like LLaVA's, but the same whenever the same question is answered again."""
        name = f"{self._model_id}/{self.answerer.pruner_text}/{question.question_id}/{question.text}"
        return uuid.uuid5(uuid.NAMESPACE_URL, name).hex[:22]
