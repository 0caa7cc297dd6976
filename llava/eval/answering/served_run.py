"""A run whose questions a server answers, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from llava.eval.answering.answer_run import QuestionRun
from llava.eval.answering.journal import Journal
from llava.eval.judge.client import Refused, Unreachable
from llava.eval.media.images import decode_image, load_image
from llava.eval.models.served_answerer import ServedAnswerer, ServedReply
from llava.eval.questions import Problem, Question
from llava.given import home_path, one_line


class ServedRun(QuestionRun):
    """Questions that a server answers; `answerer.connections` of them are always under way.

    Answers are written as they come; at the end the file has them in the questions' order.
    """

    def __init__(
        self,
        answerer: ServedAnswerer,
        questions: Sequence[Question],
        image_folder: str | Path,
        journal: Journal,
        problems: Sequence[Problem] = (),
    ) -> None:
        super().__init__(questions, journal, problems, answerer.name, answerer.pruner_text)
        self.answerer = answerer
        self.image_folder = home_path(image_folder)
        self._threads = ThreadPoolExecutor(answerer.connections)
        self._waiting = iter(self.pending)
        self._asked: dict[Future[ServedReply], Question] = {}

    def step(self) -> int:
        """Wait for the next answers and write them; returns how many questions were tried.

        Raises ValueError, one line, when the server is gone or refuses every question.
        """
        while len(self._asked) < self.answerer.connections:
            question = next(self._waiting, None)
            if question is None:
                break
            self._asked[self._threads.submit(self._answer, question)] = question
        done, _ = wait(self._asked, return_when=FIRST_COMPLETED)
        for future in done:
            question = self._asked.pop(future)
            self.remaining -= 1
            try:
                reply = future.result()
            except Refused:
                raise
            except Unreachable as error:
                raise ValueError(
                    f"the server at {self.answerer.served.url} is gone ({error}); start it again"
                ) from error
            except Exception as error:  # a bad picture, a prompt that is too long: this question's problem alone
                self._fail(question, one_line(error))
            else:
                self._write(question, reply.text, reply.metadata())
        return len(done)

    def close(self) -> None:
        self.answerer.client.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)
        super().close()

    def finish(self) -> list[Problem]:
        self._threads.shutdown()
        return super().finish()

    def _answer(self, question: Question) -> ServedReply:
        pictures = [
            decode_image(source) if isinstance(source, bytes) else load_image(self.image_folder / source)
            for source in question.images
        ]
        return self.answerer.answer(question.text, pictures)
