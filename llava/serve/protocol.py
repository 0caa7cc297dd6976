"""What controller, workers and clients say to each other: JSON by POST, answers as JSON documents ended by a zero byte.

An answer's documents hold `text` (the prompt and what was generated so far) and `error_code`. A failed one has the
reason as its text, and `error` with `kind`, `type` and `message`. The last good one has `figures` (`AnswerStats`) and,
if asked for, `kept` (`kept_of`).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Any

from fastapi import Request
from PIL import Image
from pydantic import BaseModel, Field, ValidationError

from llava.eval.media.images import decode_image

DELIMITER = b"\0"
MAX_NEW_TOKENS = 1024  # LLaVA's cap on what a request gets
LARGEST_BODY = 128 * 2**20  # bytes of a whole request


class ErrorCode(IntEnum):
    """LLaVA's numbers; what exactly went wrong is the message's `error.kind`."""

    NONE = 0
    WORKER = 1
    NO_WORKER = 2
    TIMEOUT = 3


class NoWorkerError(Exception):
    """No worker serves the model that was asked for."""


class WorkerLostError(Exception):
    """A worker did not answer, or stopped in the middle."""


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
    """What a worker says of itself.

    visual_tokens: what one tile has unpruned, 0 where that is not known. conv_mode: its template, "" to go by the name.
    """

    model_names: list[str]
    speed: float = 1.0
    queue_length: int = 0
    visual_tokens: int = 0
    pruner: str = "none"
    conv_mode: str = ""


class RegisterRequest(BaseModel):
    """Body of /register_worker; without a status the worker is asked for it."""

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
    """The documents in a byte stream, wherever it was cut. Raises WorkerLostError if it ends within one."""
    rest = b""
    for chunk in chunks:
        *documents, rest = (rest + chunk).split(DELIMITER)
        for document in filter(None, documents):
            yield json.loads(document)
    if rest:
        raise WorkerLostError("the answer ended in the middle of a message")


def failure(error: BaseException) -> dict[str, Any]:
    """The last document of an answer that failed, with the error's true class and message."""
    name = type(error).__name__
    message = " ".join(str(error).split()) or "no further message"
    code, kind, advice = ErrorCode.WORKER, "exception", ""
    if isinstance(error, NoWorkerError):
        code, kind = ErrorCode.NO_WORKER, "no_worker"
    elif isinstance(error, WorkerLostError):
        code, kind = ErrorCode.TIMEOUT, "worker_lost"
    elif isinstance(error, TimeoutError):
        code, kind = ErrorCode.TIMEOUT, "timeout"
    elif name == "OutOfMemoryError" or isinstance(error, MemoryError):  # torch's, which a controller does without
        kind, advice = "out_of_memory", " Try fewer visual tokens, a smaller picture or a shorter conversation."
    elif isinstance(error, ValueError):
        kind = "bad_request"
    return {
        "text": f"{name}: {message}.{advice}" if advice else f"{name}: {message}",
        "error_code": int(code),
        "error": {"kind": kind, "type": name, "message": message},
    }


async def read_request_or_failure(request: Request) -> GenerateRequest | dict[str, Any]:
    """A generation request, or what to answer to a bad one. To be called before the response begins, which would
    otherwise take the request's body for a sign of the client's leaving.
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
    """Pictures from base64. Raises ValueError, one line, that tells which one is too large or no picture."""
    images = []
    for number, text in enumerate(texts, start=1):
        try:
            if len(text) * 3 // 4 > largest_bytes:
                raise ValueError(f"larger than {largest_bytes} bytes")
            images.append(decode_image(base64.b64decode(text, validate=True), largest_pixels))
        except binascii.Error as error:
            raise ValueError(f"image {number}: not base64 ({error})") from None
        except ValueError as error:
            raise ValueError(f"image {number}: {error}") from error
    return images
