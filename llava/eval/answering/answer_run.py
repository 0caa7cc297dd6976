"""Runs that answer questions into a file, some per call, so that several runs can alternate."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from llava.eval.answering.journal import Journal
from llava.eval.media.reading import LoadedQuestion, batches
from llava.eval.models.answerer import Answerer
from llava.eval.models.reply import Reply
from llava.eval.questions import Problem, Question
from llava.given import home_path, one_line


class QuestionRun:
    """Questions that are answered into a journal. Derive, and answer some in `step`.

    model_id, pruner_text: for the answer lines. `remaining` counts the questions still to be tried, `problems` lists
    those that could not be answered.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        journal: Journal,
        problems: Sequence[Problem],
        model_id: str,
        pruner_text: str,
    ) -> None:
        self.questions = list(questions)
        self.journal = journal
        self.problems = list(problems)
        self.pending = journal.pending(questions)
        self.remaining = len(self.pending)
        self._model_id, self._pruner_text = model_id, pruner_text

    def step(self) -> int:
        """Answer some questions and write the answers; returns how many questions were tried."""
        raise NotImplementedError

    def close(self) -> None:
        """End a run that is not finished: the answers so far stay, and the file is free again."""
        self.journal.close()

    def finish(self) -> list[Problem]:
        """Close the answers file and return the problems."""
        self.journal.finish(self.questions, self.problems)
        return self.problems

    def _write(self, question: Question, text: str, metadata: Mapping[str, Any]) -> None:
        self.journal.write(
            {
                "question_id": question.question_id,
                "prompt": question.recorded,
                "text": text,
                "answer_id": self._answer_id(question),
                "model_id": self._model_id,
                **question.extra,
                "metadata": {"pruner": self._pruner_text, **metadata},
            }
        )

    def _fail(self, question: Question, problem: str) -> None:
        self.problems.append(Problem(f"question {question.question_id}", problem))

    def _answer_id(self, question: Question) -> str:
        """Short and unique like LLaVA's, but the same when the same question is answered again."""
        name = f"{self._model_id}/{self._pruner_text}/{question.question_id}/{question.recorded}"
        return uuid.uuid5(uuid.NAMESPACE_URL, name).hex[:22]


class AnswerRun(QuestionRun):
    """Questions that a loaded model answers, one batch in a step.

    workers: processes that prefetch and prepare pictures; 0 does it in the main process.
    """

    def __init__(
        self,
        answerer: Answerer,
        questions: Sequence[Question],
        image_folder: str | Path,
        journal: Journal,
        batch_size: int = 1,
        problems: Sequence[Problem] = (),
        workers: int = 0,
    ) -> None:
        super().__init__(questions, journal, problems, answerer.checkpoint.name, answerer.pruner_text)
        self.answerer = answerer
        self.image_folder = home_path(image_folder)
        self.batch_size = batch_size
        self.workers = workers
        self._batches = self._read(self.pending)

    def _read(self, questions: Sequence[Question], workers: int | None = None) -> Iterator[list[LoadedQuestion]]:
        workers = self.workers if workers is None else workers
        return batches(questions, self.image_folder, self.answerer.checkpoint.reader, self.batch_size, workers)

    def warm_up(self) -> None:
        """Answer the first question and discard the answer, as a warm-up for timing."""
        for batch in self._read(self.pending[: self.batch_size], workers=0):
            with suppress(Exception):  # it becomes the question's problem when it is asked
                self._answer([read for read in batch if read.problem is None])

    def step(self) -> int:
        """Answer the next batch and write the answers; returns how many questions were tried."""
        batch = next(self._batches)
        asked = len(self.questions) - self.remaining
        self.remaining -= len(batch)
        good = [read for read in batch if read.problem is None]
        for read in batch:
            if read.problem is not None:
                self._fail(read.question, read.problem)
        torch.manual_seed(self.answerer.generation.seed + asked)
        for read, reply in self._answered(good):
            self._write(read.question, reply.text, {"batch": self.batch_size, **reply.metadata()})
        return len(batch)

    def _answered(self, batch: Sequence[LoadedQuestion]) -> list[tuple[LoadedQuestion, Reply]]:
        """The questions with their replies; a question that the model cannot process becomes a problem of that question
        only.
        """
        try:
            return list(zip(batch, self._answer(batch), strict=True))
        except Exception as error:  # of the tokenizer, the model, out of memory: not only those that we foresee
            if len(batch) > 1:
                return [pair for read in batch for pair in self._answered([read])]
            self._fail(batch[0].question, one_line(error))
            return []

    def _answer(self, batch: Sequence[LoadedQuestion]) -> list[Reply]:
        if not batch:
            return []
        return self.answerer.answer([read.question.text for read in batch], [read.pictures for read in batch])
