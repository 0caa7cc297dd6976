"""The base of all workers: registration with the controller, a limit of concurrent questions, and the web
application."""

from __future__ import annotations

import argparse
import asyncio
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response

from llava.constants import WORKER_HEART_BEAT_INTERVAL
from llava.serve.client import post
from llava.serve.engine import KEEP_ALIVE
from llava.serve.guards import guard, parse, read_body, respond
from llava.serve.protocol import GenerateRequest, WorkerStatus, encode, failure
from llava.serve.server import hosts_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """The addresses of a worker, as others reach it, and of its controller, "" for none.

    limit: questions processed at a time; others wait. interval: seconds between two heartbeats. hosts: see
    `guards.known_hosts`.
    """

    worker_address: str
    controller_address: str = ""
    limit: int = 5
    interval: float = WORKER_HEART_BEAT_INTERVAL
    hosts: frozenset[str] = field(default=frozenset(), compare=False)

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"--limit-model-concurrency {self.limit} allows no question; give 1 or more")


class HeartBeats:
    """A thread that registers a worker and keeps it registered, also if the controller starts later or restarts."""

    def __init__(self, worker: Worker, place: Place) -> None:
        self.worker, self.place = worker, place
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Unregister, so that no more questions are sent here."""
        self._end.set()
        self._thread.join()
        self._post("unregister_worker", {"worker_name": self.place.worker_address})

    def _run(self) -> None:
        known = False
        while not self._end.is_set():
            known = self._beat() if known else self._register()
            if not known:
                known = self._register()
            self._end.wait(self.place.interval)

    def _register(self) -> bool:
        body = {
            "worker_name": self.place.worker_address,
            "check_heart_beat": True,
            "worker_status": self.worker.status().model_dump(),
        }
        return self._post("register_worker", body) is not None

    def _beat(self) -> bool:
        body = {"worker_name": self.place.worker_address, "queue_length": self.worker.queue_length}
        answer = self._post("receive_heart_beat", body)
        return bool(answer and answer.get("exist"))

    def _post(self, what: str, body: dict[str, Any]) -> dict[str, Any] | None:
        url = f"{self.place.controller_address}/{what}"
        try:
            return post(url, body) or {}
        except ValueError as error:
            logger.warning("controller: %s", error)
            return None


class Worker(ABC):
    """A worker for one model. Derive, and answer in `generate`."""

    def __init__(self, model_name: str, place: Place) -> None:
        self.model_name = model_name
        self.place = place
        self._slots = asyncio.Semaphore(place.limit)
        self._inside = 0

    @property
    def queue_length(self) -> int:
        """Questions being processed or waiting."""
        return self._inside

    def status(self) -> WorkerStatus:
        return WorkerStatus(model_names=[self.model_name], queue_length=self.queue_length)

    @abstractmethod
    def generate(self, request: GenerateRequest) -> AsyncIterator[dict[str, Any]]:
        """The documents of an answer; an exception becomes the last one."""

    async def stream(self, body: GenerateRequest) -> AsyncGenerator[bytes, None]:
        """The encoded answer."""
        self._inside += 1
        entered = False
        try:
            if body.model not in ("", self.model_name):
                raise ValueError(f"this worker serves {self.model_name}, not {body.model}")
            while not (entered := await self._enter()):
                yield encode({"text": body.prompt, "error_code": 0})  # still waiting
            async with aclosing(self.generate(body)) as documents:  # type: ignore[type-var]
                async for document in documents:
                    yield encode(document)
        except Exception as error:  # the client gets every error; errors other than bad requests are also logged
            if not isinstance(error, ValueError):
                logger.error("%s: %s", type(error).__name__, error)
            yield encode(failure(error))
        finally:
            self._inside -= 1
            if entered:
                self._slots.release()

    async def _enter(self) -> bool:
        try:
            return await asyncio.wait_for(self._slots.acquire(), KEEP_ALIVE)
        except TimeoutError:
            return False

    def build_app(self) -> FastAPI:
        """The worker's web application; it registers when it starts and unregisters when it stops."""
        beats = HeartBeats(self, self.place) if self.place.controller_address else None

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            if beats is not None:
                beats.start()
            yield
            if beats is not None:
                await asyncio.to_thread(beats.stop)

        # Its own address is a name under which it is reached.
        hosts = {*self.place.hosts, urlsplit(self.place.worker_address).hostname or ""}
        app = guard(FastAPI(title=f"llava worker: {self.model_name}", lifespan=lifespan), hosts)

        @app.post("/worker_generate_stream")
        async def worker_generate_stream(request: Request) -> Response:
            return await respond(self.stream(parse(GenerateRequest, await read_body(request))))

        @app.post("/worker_get_status")
        async def worker_get_status() -> WorkerStatus:
            return self.status()

        return app


def place_of(args: argparse.Namespace) -> Place:
    controller = "" if args.no_register else args.controller_address.rstrip("/")
    worker = args.worker_address.rstrip("/")
    return Place(worker, controller, args.limit_model_concurrency, hosts=hosts_of(args))
