"""The common part of workers that pass questions on to another server, which streams its answer as events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx

from llava.serve.client import QUICK
from llava.serve.limits import PATIENCE
from llava.serve.protocol import WorkerLostError
from llava.serve.worker import Place, Worker


class ForwardingWorker(Worker):
    """A worker in front of a server.

    server: what it is called in messages. endpoint: its address.
    """

    server: str

    def __init__(self, model_name: str, place: Place, endpoint: str) -> None:
        super().__init__(model_name, place)
        self.endpoint = endpoint

    def reason(self, body: str) -> str:
        """What the body of a refusal says, in one line."""
        return " ".join(body.split())

    async def events(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The documents of a streamed answer.

        Raises ValueError for a refused question, RuntimeError for an error within the answer, TimeoutError and
        WorkerLostError.
        """
        timeout = httpx.Timeout(PATIENCE, connect=QUICK)
        async with httpx.AsyncClient(timeout=timeout, trust_env=False) as client:
            try:
                async with client.stream("POST", f"{self.endpoint}{path}", json=body) as answer:
                    if answer.is_error:
                        reason = self.reason((await answer.aread()).decode(errors="replace"))
                        raise ValueError(f"{self.server} answered {answer.status_code}: {reason}")
                    async for line in answer.aiter_lines():
                        document = event_of(line, self.server)
                        if document is not None:
                            yield document
            except httpx.TimeoutException as error:
                raise TimeoutError(f"{self.server} at {self.endpoint} sent nothing for {PATIENCE:g} s") from error
            except httpx.HTTPError as error:
                said = f"{type(error).__name__}: {error}"
                raise WorkerLostError(f"{self.server} at {self.endpoint} is gone ({said})") from error


def event_of(line: str, server: str) -> dict[str, Any] | None:
    """A server-sent event's document, None for other lines. Raises RuntimeError for the server's own error."""
    if not line.startswith("data:") or line.strip() == "data: [DONE]":
        return None
    document = json.loads(line.removeprefix("data:"))
    if document.get("error"):
        raise RuntimeError(f"{server}: {document['error']}")
    return document
