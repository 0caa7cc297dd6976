"""Judging of all answers by a language model, and the record of the judging.

    answers --JudgeProtocol--> requests --an OpenAI-compatible server, or files--> replies --> verdicts on the samples

A run may be killed at any moment; started again, it requests only missing replies. Too many failures are an error
without a score. Without a judge there are no verdicts and the score is missing, never 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from flowcut.cli.progress import progress_bar
from llava.eval.judge.client import Client, Endpoint, Unanswered
from llava.eval.judge.protocol import Ask, JudgeProtocol, Prompts, body_of, load_prompts
from llava.eval.judge.replies import Filed, Online, ReplyJournal, read_replies, write_requests
from llava.eval.judge.settings import HOW, JudgeSettings
from llava.eval.sample import JudgeReply, Sample, Verdict

Place = tuple[int, int]  # which sample, which run


class JudgesFailed(ValueError):
    """More answers were left without a readable verdict than allowed."""


class Judged(NamedTuple):
    """samples: with their verdicts. labels: of the score. record: the judge's data, for the score's file."""

    samples: list[Sample]
    labels: list[str]
    record: dict[str, Any]


def apply(
    protocol: JudgeProtocol | None,
    samples: Sequence[Sample],
    settings: JudgeSettings,
    journal: Path,
    progress: bool = False,
) -> Judged:
    """The samples with one verdict per run for each answer; unchanged without a judge.

    protocol: None for a benchmark without a judge. journal: file of the replies. progress: show a bar on stderr.
    Raises JudgesFailed when too many verdicts failed, ValueError (one line) for invalid input.
    """
    if protocol is None:
        if settings.judges:
            raise ValueError("this benchmark is scored without a judge; leave the --judge flags out")
        return Judged(list(samples), [], {})
    if not settings.judges:
        return Judged(list(samples), [f"not judged: {HOW}"], {})
    review = _Review(protocol, load_prompts(protocol, settings.prompt), settings, samples)
    if settings.endpoint is not None:
        review.online(settings.endpoint, journal, progress)
    else:
        written = review.filed()
        if written:
            return Judged(list(samples), [f"not judged: {written} requests written to {settings.requests}"], {})
    return Judged(review.judged(), review.labels(), review.record())


class _Review:
    """The verdicts so far."""

    def __init__(
        self, protocol: JudgeProtocol, prompts: Prompts, settings: JudgeSettings, samples: Sequence[Sample]
    ) -> None:
        self.protocol = protocol
        self.prompts = prompts
        self.settings = settings
        self.samples = samples
        self.model = settings.model or protocol.model
        self.host = settings.endpoint.host if settings.endpoint else "files"
        answered = [
            index for index, sample in enumerate(samples) if sample.text is not None and sample.truth is not None
        ]
        self.places: list[Place] = [(index, run) for run in range(settings.runs) for index in answered]
        self.verdicts: dict[Place, Verdict] = {}
        self.failed: list[Place] = []
        self.kept = 0

    def online(self, endpoint: Endpoint, journal: Path, progress: bool) -> None:
        with ReplyJournal(journal, self.host, self.prompts.version) as kept:
            for place in self.places:
                self._settle(place, self._verdict(place, kept))
            self.kept = len(self.verdicts)
            waiting = [place for place in self.places if place not in self.verdicts]
            if waiting:
                with Client(endpoint) as client:
                    self._ask(waiting, Online(kept, client), progress)
        self._refuse_failures(f"; replies are kept in {journal}")

    def _ask(self, waiting: Sequence[Place], source: Online, progress: bool) -> None:
        with (
            _pool(self.settings.workers, source.client) as pool,
            progress_bar(
                total=len(self.places), initial=self.kept, desc=self.model, unit="verdict", disable=not progress
            ) as bar,
        ):
            futures: dict[Future[Verdict | None], Place] = {
                pool.submit(self._verdict, place, source): place for place in waiting
            }
            for future in as_completed(futures):
                self._settle(futures[future], future.result())
                bar.update()
                self._refuse_failures("; started again, it asks for what is missing")

    def filed(self) -> int:
        """Read the reply files; returns how many requests without a reply were written."""
        source = Filed(read_replies(self.settings.replies))
        for place in self.places:
            self._settle(place, self._verdict(place, source))
        if self.settings.requests is not None:
            write_requests(source.open, self.settings.requests)
            if source.open:
                return len(source.open)
        for place in self.places:
            if place not in self.verdicts:
                self._settle(place, Verdict(None, None, "no reply in the files"))
        self._refuse_failures("; --judge-requests beside --judge-replies writes the remaining requests")
        return 0

    def _settle(self, place: Place, verdict: Verdict | None) -> None:
        if verdict is not None:
            self.verdicts[place] = verdict
            if verdict.problem:
                self.failed.append(place)

    def _verdict(self, place: Place, source: Online | Filed | ReplyJournal) -> Verdict | None:
        """None where the source has no reply to a required attempt."""
        index, run = place
        sample = self.samples[index]
        reply: JudgeReply | None = None
        for attempt in range(1, self.protocol.attempts + 1):
            body = body_of(self.protocol, self.prompts, sample, attempt, self.model, self.settings.body)
            try:
                reply = source.find(Ask(sample.question_id, run, attempt, body))
            except Unanswered as error:
                return Verdict(None, reply, str(error))
            if reply is None:
                return None
            if (value := self.protocol.parse(reply.text)) is not None:
                return Verdict(value, reply)
        return Verdict(self.protocol.fallback, reply, f"unreadable reply {reply.text[:60]!r}" if reply else "")

    def _refuse_failures(self, hint: str) -> None:
        if len(self.failed) > self.settings.failures * len(self.places):
            first = self.failed[0]
            raise JudgesFailed(
                f"{len(self.failed)} of {len(self.places)} verdicts failed (first: question "
                f"{self.samples[first[0]].question_id}: {self.verdicts[first].problem}), more than "
                f"--max-judge-failures {self.settings.failures:g} allows{hint}"
            )

    def judged(self) -> list[Sample]:
        said: dict[int, list[Verdict]] = {}
        for index, run in sorted(self.places):
            said.setdefault(index, []).append(self.verdicts[index, run])
        return [replace(sample, verdicts=tuple(said.get(index, ()))) for index, sample in enumerate(self.samples)]

    def labels(self) -> list[str]:
        published = "" if self.model == self.protocol.model else f", published with {self.protocol.model}"
        labels = [f"judge {self.model} at {self.host}{published}, prompt {self.prompts.version}"]
        if failed := len(self.failed):
            labels.append(f"{failed} of {len(self.places)} verdicts failed")
        return labels

    def record(self) -> dict[str, Any]:
        """The data that a score needs for comparison with others."""
        replies = [verdict.reply for verdict in self.verdicts.values() if verdict.reply is not None]
        dates = sorted(reply.date for reply in replies if reply.date)
        first = {
            "temperature": self.protocol.temperature(1),
            "max_tokens": self.protocol.max_tokens,
            **self.settings.body,
        }
        return {
            "model": self.model,
            "answered_as": sorted({reply.model for reply in replies if reply.model}),
            "published_with": self.protocol.model,
            "host": self.host,
            "prompt": self.prompts.version,
            "temperature": first["temperature"],
            "max_tokens": first["max_tokens"],
            "body": dict(self.settings.body),
            "runs": self.settings.runs,
            "published_runs": self.protocol.runs,
            "verdicts": len(self.places),
            "failed": len(self.failed),
            "from_journal": self.kept,
            "first_reply": dates[0] if dates else None,
            "last_reply": dates[-1] if dates else None,
        }


@contextmanager
def _pool(workers: int, client: Client) -> Iterator[ThreadPoolExecutor]:
    """Threads that are cancelled, even during a pause, when the block is left by an error."""
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool
    except BaseException:
        client.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
