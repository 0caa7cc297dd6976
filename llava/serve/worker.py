"""What every worker has: a place at the controller, a limit of questions at a time, and its web application."""

from __future__ import annotations

import argparse
import asyncio
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from llava.constants import WORKER_HEART_BEAT_INTERVAL
from llava.serve.engine import KEEP_ALIVE
from llava.serve.protocol import GenerateRequest, WorkerStatus, encode, failure, read_request_or_failure

logger = logging.getLogger(__name__)

CONTROLLER_TIMEOUT = 5.0  # seconds


@dataclass(frozen=True)
class Place:
    """Where a worker stands: its own address as others reach it, and the controller's, "" to be alone.

    limit: questions in work at a time; more than that wait. interval: seconds between two heart beats.
    """

    worker_address: str
    controller_address: str = ""
    limit: int = 5
    interval: float = WORKER_HEART_BEAT_INTERVAL

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"--limit-model-concurrency {self.limit} lets nobody in; give 1 or more")


class HeartBeats:
    """A thread that registers a worker and keeps it registered: also with a controller that starts later, or anew."""

    def __init__(self, worker: Worker, place: Place) -> None:
        self.worker, self.place = worker, place
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Say goodbye, so that nobody is sent here any more."""
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
            answer = httpx.post(url, json=body, timeout=CONTROLLER_TIMEOUT, trust_env=False)
            return answer.raise_for_status().json() or {}
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            logger.warning("controller: %s failed (%s: %s)", url, type(error).__name__, error)
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
        """Questions in work and waiting."""
        return self._inside

    def status(self) -> WorkerStatus:
        return WorkerStatus(model_names=[self.model_name], queue_length=self.queue_length)

    @abstractmethod
    def generate(self, request: GenerateRequest) -> AsyncIterator[dict[str, Any]]:
        """The documents of an answer; what it raises becomes the last one."""

    async def stream(self, body: GenerateRequest | dict[str, Any]) -> AsyncIterator[bytes]:
        """The answer on the wire."""
        if isinstance(body, dict):
            yield encode(body)
            return
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
        except Exception as error:  # the asker hears of everything; what is no bad request also goes into the log
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
        """The worker's web application; it registers when it starts and says goodbye when it stops."""
        beats = HeartBeats(self, self.place) if self.place.controller_address else None

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            if beats is not None:
                beats.start()
            yield
            if beats is not None:
                await asyncio.to_thread(beats.stop)

        app = FastAPI(title=f"llava worker: {self.model_name}", lifespan=lifespan)

        @app.post("/worker_generate_stream")
        async def worker_generate_stream(request: Request) -> StreamingResponse:
            return StreamingResponse(self.stream(await read_request_or_failure(request)))

        @app.post("/worker_get_status")
        async def worker_get_status() -> WorkerStatus:
            return self.status()

        return app


def add_worker_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of every kind of worker. `--worker` and `--controller` stay unambiguous beginnings."""
    parser.add_argument("--host", default="localhost", help="where to listen (default: this machine alone)")
    parser.add_argument("--port", type=int, default=21002)
    parser.add_argument("--worker-address", default="http://localhost:21002", help="this worker, as others reach it")
    parser.add_argument("--controller-address", default="http://localhost:21001")
    parser.add_argument("--model-name", help="name to serve under (default: the checkpoint's)")
    parser.add_argument("--limit-model-concurrency", type=int, default=5, help="questions in work; others wait")
    parser.add_argument("--stream-interval", type=int, default=1, help="new tokens between two pieces of news")
    parser.add_argument("--no-register", action="store_true", help="do without a controller")


def place_of(args: argparse.Namespace) -> Place:
    controller = "" if args.no_register else args.controller_address.rstrip("/")
    return Place(args.worker_address.rstrip("/"), controller, args.limit_model_concurrency)
