"""A judge's replies on disk: a journal that survives a kill, and request and reply files for judging elsewhere.

Replies are found by a key of the whole request (question, run, attempt, model, prompt, settings), so that only changed
answers or prompts are requested again. Request and reply files have the format of OpenAI's batches.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.files import drop_half_line, read_rows, write_rows
from llava.eval.judge.client import Client, reply_of
from llava.eval.judge.protocol import Ask
from llava.eval.sample import JudgeReply
from llava.given import home_path


class ReplyJournal:
    """Replies of judges, one per line, written and flushed immediately; an incomplete line is dropped.

    Every line has model, host, prompt version, temperature and date. Raises ValueError when a line is damaged.
    """

    def __init__(self, path: Path, host: str, prompt: str) -> None:
        self.path = home_path(path)
        self._about = {"host": host, "prompt": prompt}
        self._lock = threading.Lock()
        self._replies: dict[str, JudgeReply] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        drop_half_line(self.path)
        for number, row in enumerate(read_rows(self.path, "journal") if self.path.is_file() else [], start=1):
            try:
                if row["host"] == host:
                    self._replies[row["key"]] = JudgeReply(row["reply"], row["model"], row["date"])
            except KeyError as error:
                raise ValueError(f"{self.path} line {number} has no {error}; remove the line") from None
        self._file = self.path.open("a", encoding="utf-8")

    def __enter__(self) -> ReplyJournal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def find(self, ask: Ask) -> JudgeReply | None:
        """A reply of an earlier run."""
        return self._replies.get(ask.key)

    def write(self, ask: Ask, reply: JudgeReply) -> None:
        row = {
            "key": ask.key,
            "question_id": ask.question_id,
            "run": ask.run,
            "attempt": ask.attempt,
            "reply": reply.text,
            "asked_model": ask.body.get("model"),
            "model": reply.model,
            "temperature": ask.body.get("temperature"),
            "date": reply.date,
            **self._about,
        }
        with self._lock:
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._file.flush()


class Online:
    """Replies from the journal, else from the judge."""

    def __init__(self, journal: ReplyJournal, client: Client) -> None:
        self.journal = journal
        self.client = client

    def find(self, ask: Ask) -> JudgeReply | None:
        found = self.journal.find(ask)
        if found is None:
            found = self.client.ask(ask.body)
            self.journal.write(ask, found)
        return found


class Filed:
    """Replies from files; `open` collects the requests that no file answers."""

    def __init__(self, replies: Mapping[str, JudgeReply]) -> None:
        self.replies = replies
        self.open: list[Ask] = []

    def find(self, ask: Ask) -> JudgeReply | None:
        found = self.replies.get(ask.key)
        if found is None:
            self.open.append(ask)
        return found


def write_requests(asks: Iterable[Ask], path: Path) -> None:
    """A batch's input: one line per request, with its key as `custom_id`."""
    rows = [{"custom_id": ask.key, "method": "POST", "url": "/v1/chat/completions", "body": ask.body} for ask in asks]
    write_rows(rows, path)


def read_replies(paths: Sequence[Path]) -> dict[str, JudgeReply]:
    """Key -> reply from batch outputs, or from lines `{"custom_id": ..., "reply": "..."}`; later ones take precedence.

    A batch's lines of failed requests are skipped. Raises ValueError, one line, for other lines.
    """
    replies = {}
    for path in paths:
        for number, row in enumerate(read_rows(home_path(path), "replies"), start=1):
            try:
                found = _filed(row)
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise ValueError(
                    f"{path} line {number} is not a reply ({error}); give custom_id and reply, or a batch's output"
                ) from None
            if found is not None:
                replies[row["custom_id"]] = found
    return replies


def _filed(row: dict[str, Any]) -> JudgeReply | None:
    if not isinstance(row["custom_id"], str):
        raise ValueError("custom_id is not text")
    if isinstance(row.get("reply"), str):
        return JudgeReply(row["reply"], row.get("model") or "", row.get("date") or "")
    response = row["response"]
    if row.get("error") or response is None or response["status_code"] != 200:
        return None
    return reply_of(response["body"], "")
