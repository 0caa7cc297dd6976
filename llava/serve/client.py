"""The client side of the protocol: requests of a page or a program to controller and workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx

from llava.conversation import Conversation, conv_templates, conversation_mode
from llava.serve.protocol import NoWorkerError, WorkerLostError, WorkerStatus, decode, failure

QUICK = 10.0  # timeout in seconds of a request about workers
STATED = (200, 400, 408, 413, 415)  # statuses whose body is a document that says what is wrong
SILENCE = 60.0  # timeout in seconds without a byte of an answer; a working worker sends some every few seconds


class ControllerClient:
    """A controller at an address. Raises ValueError, one line, when it does not answer."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")

    def refresh(self) -> None:
        """Let it check every worker; those that do not respond are dropped."""
        self._post("refresh_all_workers")

    def models(self) -> list[str]:
        return self._post("list_models")["models"]

    def worker(self, model: str) -> str:
        """The address of a worker for a model. Raises NoWorkerError."""
        address = self._post("get_worker_address", {"model": model})["address"]
        if not address:
            raise NoWorkerError(f"no worker serves {model!r}; start one with python -m llava.serve.model_worker")
        return address

    def register(self, worker: str, check_heart_beat: bool) -> bool:
        """Register a worker; False if it does not report its models."""
        body = {"worker_name": worker, "check_heart_beat": check_heart_beat, "worker_status": None}
        return (self._post("register_worker", body) or {}).get("registered", True)  # LLaVA's controller returns nothing

    def _post(self, what: str, body: dict[str, Any] | None = None) -> Any:
        return post(f"{self.address}/{what}", body)


def status_of(worker: str) -> WorkerStatus:
    """A worker's status. Raises ValueError, one line, when it does not respond."""
    return WorkerStatus.model_validate(post(f"{worker}/worker_get_status"))


def template_of(status: WorkerStatus, model: str) -> Conversation:
    """The prompt template of a model: as its worker reports, else by its name."""
    return conv_templates[conversation_mode(model, status.conv_mode or None)]


def post(url: str, body: dict[str, Any] | None = None) -> Any:
    """The JSON response of a service. Raises ValueError, one line, when there is none."""
    return _ask("POST", url, body)


def get(url: str) -> Any:
    """The same without a body."""
    return _ask("GET", url, None)


def _ask(method: str, url: str, body: dict[str, Any] | None) -> Any:
    try:
        answer = httpx.request(method, url, json=body, timeout=QUICK, trust_env=False)
        content = (answer if answer.status_code in STATED else answer.raise_for_status()).json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ValueError(
            f"no valid answer from {url} ({type(error).__name__}: {error}); is the server running?"
        ) from error
    if isinstance(content, dict) and "error" in content:
        raise ValueError(f"{url} refused: {content.get('text')}")
    return content


def stream(address: str, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A worker's (or a controller's) answer, document by document; a lost connection is the last of them.

    Closing the iterator closes the connection, which ends the generation.
    """
    wait = httpx.Timeout(SILENCE, connect=QUICK)
    try:
        with httpx.stream(
            "POST", f"{address}/worker_generate_stream", json=request, timeout=wait, trust_env=False
        ) as answer:
            if answer.status_code not in STATED:
                answer.raise_for_status()
            for document in decode(answer.iter_raw()):
                if not isinstance(document.get("text"), str) or not isinstance(document.get("error_code"), int):
                    raise WorkerLostError("a message of the answer has no text or error_code")
                yield document
    except httpx.TimeoutException:
        yield failure(TimeoutError(f"worker {address} sent nothing for {SILENCE:g} s"))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        yield failure(WorkerLostError(f"worker {address} is gone ({type(error).__name__}: {error})"))
    except WorkerLostError as error:
        yield failure(error)
