"""The protocol of controller, workers and clients: JSON by POST; answers are JSON documents, each ended by a zero byte.

An answer's documents have `text` (the prompt and the text generated so far) and `error_code`. A failed one has the
reason as its text, and `error` with `kind`, `type` and `message`. The last one of a successful answer has `figures`
(`AnswerStats`) and, if requested, `kept` (`kept_of`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

DELIMITER = b"\0"
MAX_NEW_TOKENS = 1024  # LLaVA's limit per request
LARGEST_DOCUMENT = 2**28  # bytes; a document repeats its prompt
MOST_ROUNDS = 9


def _printable(text: str) -> str:
    """Names are written to logs and shown on pages, where control characters could imitate other lines."""
    if not text.isprintable():
        raise ValueError("control characters are not allowed")
    return text


def _address(text: str) -> str:
    parts = urlsplit(_printable(text))
    port = parts.port  # raises ValueError above 65535
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or " " in text:
        raise ValueError("write an address such as http://localhost:21002, with a port from 1 to 65535")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("an address has no user, query or fragment")
    return text


Name = Annotated[str, Field(max_length=200), AfterValidator(_printable)]
Address = Annotated[str, Field(max_length=500), AfterValidator(_address)]
Count = Annotated[int, Field(ge=0, le=10**9)]


class Message(BaseModel):
    """A message's fields are finite numbers."""

    model_config = ConfigDict(allow_inf_nan=False)


class ErrorCode(IntEnum):
    """LLaVA's numbers; the message's `error.kind` is more specific."""

    NONE = 0
    WORKER = 1
    NO_WORKER = 2
    TIMEOUT = 3


class NoWorkerError(Exception):
    """No worker serves the requested model."""


class WorkerLostError(Exception):
    """A worker did not respond, or its connection was lost during an answer."""


class GenerateRequest(Message):
    """Body of /worker_generate_stream. Beyond LLaVA's fields: `pruner`, `seed`, `trace`, `rounds`, `against` (see
    `engine.ChatPrompt`). As in LLaVA, `top_p` 0 takes the most likely token, and `max_new_tokens` 0 leaves no room.
    """

    model: Name = ""
    prompt: str
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, ge=0, le=1)
    max_new_tokens: int = Field(256, ge=0)
    stop: str | Annotated[list[str], Field(fail_fast=True, max_length=64)] | None = None
    images: Annotated[list[str], Field(fail_fast=True, max_length=10_000)] | None = None  # else a million errors
    pruner: str | None = Field(None, max_length=1000)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)  # torch's range
    trace: bool = False
    rounds: int = Field(0, ge=0, le=MOST_ROUNDS)
    against: str | None = Field(None, max_length=1000)

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class WorkerStatus(Message):
    """A worker's status.

    visual_tokens: tokens of one tile without pruning, 0 if unknown. conv_mode: its template, "" to infer it from the
    name. methods: names of the pruners that it can run, None if it does not say. budgets: for each of them the smallest
    budget that it can meet with its default settings; 1 where it is left out. needs_picture: whether a question
    without a picture is refused.
    """

    model_names: Annotated[list[Name], Field(fail_fast=True, max_length=1000)]
    speed: float = Field(default=1.0, gt=0, le=1e6)
    queue_length: Count = 0
    visual_tokens: Count = 0
    pruner: str = Field(default="none", max_length=2000)
    conv_mode: Name = ""
    methods: Annotated[list[Name], Field(fail_fast=True, max_length=1000)] | None = None
    budgets: Annotated[dict[Name, Count], Field(max_length=1000)] = Field(default_factory=dict)
    needs_picture: bool = False


class RegisterRequest(Message):
    """Body of /register_worker; without a status, it is requested from the worker."""

    worker_name: Address
    check_heart_beat: bool = True
    worker_status: WorkerStatus | None = None


class HeartBeat(Message):
    """Body of /receive_heart_beat."""

    worker_name: Address
    queue_length: Count = 0


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + DELIMITER


class Splitter:
    """Cuts a byte stream into its documents, without their zero bytes. `rest` is the beginning of the next one."""

    def __init__(self) -> None:
        self.rest = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """The documents that are complete now. Raises WorkerLostError when one does not end."""
        head, *tail = chunk.split(DELIMITER)
        self.rest += head
        if len(self.rest) > LARGEST_DOCUMENT:
            raise WorkerLostError(f"a message is larger than {LARGEST_DOCUMENT >> 20} MiB")
        if not tail:
            return []
        documents = [bytes(self.rest), *tail[:-1]]
        self.rest = bytearray(tail[-1])
        return [document for document in documents if document]

    def close(self) -> None:
        """At the end of the stream. Raises WorkerLostError if it is within a document."""
        if self.rest:
            raise WorkerLostError("the answer ended in the middle of a message")


def decode(chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The documents in a byte stream, in chunks of any size. Raises WorkerLostError if one is incomplete or no JSON
    object.
    """
    splitter = Splitter()
    for chunk in chunks:
        for document in splitter.feed(chunk):
            yield _object(document)
    splitter.close()


def _object(document: bytes) -> dict[str, Any]:
    try:
        found = json.loads(document)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise WorkerLostError("a message of the answer is not a JSON object")
    return found


def is_bad_request(document: bytes) -> bool:
    """Whether a document says that the request was wrong."""
    try:
        error = _object(document).get("error")
    except WorkerLostError:
        return False
    return isinstance(error, dict) and error.get("kind") == "bad_request"


def failure(error: BaseException) -> dict[str, Any]:
    """The last document of a failed answer, with the error's class and message."""
    name = type(error).__name__
    message = " ".join(str(error).split()) or "no further message"
    code, kind, advice = ErrorCode.WORKER, "exception", ""
    if isinstance(error, NoWorkerError):
        code, kind = ErrorCode.NO_WORKER, "no_worker"
    elif isinstance(error, WorkerLostError):
        code, kind = ErrorCode.TIMEOUT, "worker_lost"
    elif isinstance(error, TimeoutError):
        code, kind = ErrorCode.TIMEOUT, "timeout"
    elif name == "OutOfMemoryError" or isinstance(error, MemoryError):  # by name: no torch here
        kind, advice = "out_of_memory", " Try fewer visual tokens, a smaller picture or a shorter conversation."
    elif isinstance(error, ValueError):
        kind = "bad_request"
    return {
        "text": f"{name}: {message}.{advice}" if advice else f"{name}: {message}",
        "error_code": int(code),
        "error": {"kind": kind, "type": name, "message": message},
    }
