"""The protocol of controller, workers and clients: JSON by POST; answers are JSON documents, each ended by a zero byte.

An answer's documents have `text` (the prompt and the text generated so far) and `error_code`. A failed one has the
reason as its text, and `error` with `kind`, `type` and `message`. The last one of a successful answer has `figures`
(`AnswerStats`) and, if requested, `kept` (`kept_of`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Any

from fastapi import Request
from PIL import Image
from pydantic import BaseModel, Field, ValidationError

from llava.eval.media.images import decode_image
from llava.given import decode_base64

DELIMITER = b"\0"
MAX_NEW_TOKENS = 1024  # LLaVA's limit per request
LARGEST_BODY = 128 * 2**20  # bytes of a whole request


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


class GenerateRequest(BaseModel):
    """Body of /worker_generate_stream. Beyond LLaVA's fields: `pruner`, `seed`, `trace` (see `engine.ChatPrompt`)."""

    model: str = ""
    prompt: str
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: int = Field(256, ge=1)
    stop: str | list[str] | None = None
    images: list[str] | None = None
    pruner: str | None = None
    seed: int | None = None
    trace: bool = False

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class WorkerStatus(BaseModel):
    """A worker's status.

    visual_tokens: tokens of one tile without pruning, 0 if unknown. conv_mode: its template, "" to infer it from the
    name.
    """

    model_names: list[str]
    speed: float = 1.0
    queue_length: int = 0
    visual_tokens: int = 0
    pruner: str = "none"
    conv_mode: str = ""


class RegisterRequest(BaseModel):
    """Body of /register_worker; without a status, it is requested from the worker."""

    worker_name: str
    check_heart_beat: bool = True
    worker_status: WorkerStatus | None = None


class HeartBeat(BaseModel):
    """Body of /receive_heart_beat."""

    worker_name: str
    queue_length: int = 0


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + DELIMITER


def decode(chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The documents in a byte stream, in chunks of any size. Raises WorkerLostError if it ends within a document."""
    rest = b""
    for chunk in chunks:
        *documents, rest = (rest + chunk).split(DELIMITER)
        for document in filter(None, documents):
            yield json.loads(document)
    if rest:
        raise WorkerLostError("the answer ended in the middle of a message")


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


async def read_request_or_failure(request: Request) -> GenerateRequest | dict[str, Any]:
    """A generation request, or the response to an invalid one. Call it before the response begins, which would
    otherwise take the request's body for a disconnect of the client.
    """
    try:
        return await read_request(request)
    except ValueError as error:
        return failure(error)


async def read_request(request: Request, largest: int = LARGEST_BODY) -> GenerateRequest:
    """A generation request from the wire. Raises ValueError, one line, when it is too large or malformed."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > largest:
            raise ValueError(f"the request is larger than {largest >> 20} MiB; send fewer or smaller images")
    try:
        return GenerateRequest.model_validate_json(bytes(body))
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in error.errors())
        raise ValueError(f"malformed request ({'; '.join(problems)})") from None


def decode_images(texts: Iterable[str], largest_bytes: int, largest_pixels: int) -> list[Image.Image]:
    """Pictures from base64. Raises ValueError, one line, that names a picture that is too large or invalid."""
    images = []
    for number, text in enumerate(texts, start=1):
        try:
            if len(text) * 3 // 4 > largest_bytes:
                raise ValueError(f"larger than {largest_bytes} bytes")
            images.append(decode_image(decode_base64(text), largest_pixels))
        except ValueError as error:
            raise ValueError(f"image {number}: {error}") from error
    return images
