"""Client of a server with OpenAI's chat-completions protocol: a judge, or vLLM with the model that is evaluated.

Retries temporary errors (no connection, timeout, 408, 409, 425, 429, 5xx, malformed bodies) with growing pauses, waits
as long as the server requests, in all threads, and stops at once at permanent errors (a rejected key, an unknown
model, no credit).
"""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

from llava.eval.sample import JudgeReply

LONGEST_PAUSE = 60.0  # seconds between two attempts, if the server names none
LONGEST_WAIT = 600.0  # a server that requests more counts as failed
_PASSING = frozenset({408, 409, 425, 429})
_HOPELESS = frozenset({401, 403, 404})
_SHOWN = 200  # characters of a server's message
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
Answer = TypeVar("Answer")
_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Unanswered(Exception):
    """This request got no answer; other requests may."""


class Refused(ValueError):
    """The server would refuse every request; one line."""


class Unreachable(Unanswered):
    """No attempt got any response: nothing listens there, or not any more."""


class Stopped(Exception):
    """The client was stopped while this request waited."""


@dataclass(frozen=True)
class Endpoint:
    """The server's address, timeouts and retries.

    base_url: up to and without `/chat/completions`. key: sent as a bearer token, None for servers without keys.
    timeout: seconds without data before an attempt counts as failed. retries: number of retries. pause: seconds before
    the first retry, doubled each time up to LONGEST_PAUSE. connections: maximal number at a time. name, advice: what
    the server is called in messages, and what to correct where it refuses every request.
    Raises ValueError when base_url is not an http(s) address.
    """

    base_url: str
    key: str | None = None
    timeout: float = 120.0
    retries: int = 6
    pause: float = 1.0
    connections: int = 8
    name: str = "judge"
    advice: str = "correct the judge's address, model, key (--judge-key-env) or credit"

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"{self.name} address {self.base_url!r} is not an http(s) address, like https://api.openai.com/v1"
            )

    @property
    def url(self) -> str:
        return self.base_url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"

    @property
    def host(self) -> str:
        """Name and port only, because an address may contain a password."""
        parts = urlsplit(self.base_url)
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


class Pace:
    """The time before which no thread may send a request."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self._until = 0.0
        self._lock = threading.Lock()

    def hold(self, seconds: float) -> None:
        with self._lock:
            self._until = max(self._until, time.monotonic() + seconds)

    @property
    def left(self) -> float:
        """Seconds until requests are allowed; not positive if they are."""
        return self._until - time.monotonic()

    def wait(self, seconds: float = 0.0) -> None:
        """Sleep for `seconds`, and until requests are allowed. Raises Stopped when the client is stopped."""
        self._sleep(seconds)
        while self.left > 0:
            self._sleep(self.left)
        self._sleep(0)

    def _sleep(self, seconds: float) -> None:
        if self.stopping.wait(seconds) if seconds > 0 else self.stopping.is_set():
            raise Stopped


class Client:
    """The client of one server, for several threads. Close it, or use it in a `with` block.

    Raises ValueError when httpx is not installed.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        try:
            import httpx
        except ImportError:
            raise ValueError(f"asking a {endpoint.name} needs httpx; pip install 'llava-flowcut[eval]'") from None
        self.endpoint = endpoint
        self.pace = Pace()
        self._network_error = httpx.TransportError
        self._bad_body = httpx.DecodingError
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {},
            timeout=endpoint.timeout,
            limits=httpx.Limits(max_connections=endpoint.connections),
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def stop(self) -> None:
        """Wake up all waiting threads, and send no more requests."""
        self.pace.stopping.set()

    def ask(self, body: Mapping[str, Any]) -> JudgeReply:
        """The judge's reply to one request body. Raises as `post` does."""
        return self.post(body, lambda document: reply_of(document, str(body.get("model", ""))))

    def post(self, body: Mapping[str, Any], read: Callable[[Any], Answer]) -> Answer:
        """What `read` makes of the response to one request body; where it raises ValueError, another attempt is made.

        Raises Unanswered when all attempts failed or this request was rejected, Refused (one line) when all requests
        would fail, Stopped after `stop`.
        """
        pause, heard = 0.0, False
        for trial in range(self.endpoint.retries + 1):
            self.pace.wait(pause)
            pause = min(LONGEST_PAUSE, self.endpoint.pause * 2**trial) * random.uniform(0.5, 1.0)
            try:
                response = self._http.post(self.endpoint.url, json=dict(body))
            except (self._network_error, self._bad_body) as error:
                problem = f"{type(error).__name__} {error}".strip()
                continue
            heard = True
            self._heed(response.headers, response.status_code)
            if response.status_code == 200:
                try:
                    return read(response.json())
                except ValueError as error:
                    problem = str(error)
                    continue
            problem = self._refusal(response.status_code, response.text)
            if response.status_code not in _PASSING and response.status_code < 500:
                raise Unanswered(problem)
        raise (Unanswered if heard else Unreachable)(f"{problem} ({self.endpoint.retries + 1} tries)")

    def _heed(self, headers: Mapping[str, str], status: int) -> None:
        wait = announced_wait(headers, status)
        if wait > LONGEST_WAIT and status != 200:
            raise Unanswered(f"{self.endpoint.host} asks to wait {wait:.0f} s")
        self.pace.hold(min(wait, LONGEST_WAIT))

    def _refusal(self, status: int, text: str) -> str:
        """The meaning of a status other than 200, in a line. Raises Refused where it applies to every request."""
        message, code = _error_of(text)
        if self.endpoint.key:
            message = message.replace(self.endpoint.key, "***")
        problem = f"{self.endpoint.host} said {status}: {message}"
        if status in _HOPELESS or code == "insufficient_quota":
            raise Refused(f"{problem}; {self.endpoint.advice}")
        return problem


def reply_of(answer: Any, asked_model: str) -> JudgeReply:
    """The reply in a chat completion, dated with the server's clock. A null content (a refusal) is an empty text.

    Raises ValueError, one line, when it is not a chat completion.
    """
    try:
        text = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise ValueError(f"not a chat completion: {str(answer)[:_SHOWN]!r}") from None
    if text is not None and not isinstance(text, str):
        raise ValueError(f"a chat completion without text: {str(text)[:_SHOWN]!r}")
    model = answer.get("model")
    return JudgeReply(text or "", model if isinstance(model, str) else asked_model, _date(answer.get("created")))


def _date(created: Any) -> str:
    """From seconds since 1970, where a server names them; else now."""
    named = isinstance(created, (int, float)) and created > 0
    moment = datetime.fromtimestamp(created, UTC) if named else datetime.now(UTC)
    return moment.isoformat(timespec="seconds")


def announced_wait(headers: Mapping[str, str], status: int) -> float:
    """Seconds that a response requests to wait before the next request; 0 for none.

    `retry-after-ms` and `retry-after` (seconds or a date) count for responses other than 200; the
    `x-ratelimit-reset-...` of a budget whose `x-ratelimit-remaining-...` is used up counts always.
    """
    waits = [0.0]
    if status != 200:
        waits.append(_number(headers.get("retry-after-ms", "")) / 1000)
        waits.append(_retry_after(headers.get("retry-after", "")))
    for budget in ("requests", "tokens"):
        if headers.get(f"x-ratelimit-remaining-{budget}") == "0":
            waits.append(duration(headers.get(f"x-ratelimit-reset-{budget}", "")))
    return max(waits)


def duration(text: str) -> float:
    """Seconds in `12ms`, `1.5s`, `6m0s`, `20`; 0 for anything else."""
    pieces = _DURATION.findall(text)
    if "".join(number + unit for number, unit in pieces) != text:
        return 0.0
    return sum(float(number) * _UNITS[unit] for number, unit in pieces)


def _retry_after(text: str) -> float:
    if seconds := _number(text):
        return seconds
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError):  # not a date either: the header is ignored
        return 0.0
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _number(text: str) -> float:
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else 0.0


def _error_of(text: str) -> tuple[str, str | None]:
    """-> an error body's message in one line, and its code, in the formats of common servers."""
    try:
        body = json.loads(text)
    except ValueError:  # a proxy's page, for instance
        body = text
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message", error) if isinstance(error, dict) else error
    code = error.get("code") if isinstance(error, dict) else None
    return " ".join(str(message).split())[:_SHOWN], code if isinstance(code, str) else None
