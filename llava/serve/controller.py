"""Keeps a list of workers with their models and load, and forwards each question to one of them.

    python -m llava.serve.controller --host localhost --port 21001

Workers register themselves and send heartbeats. A worker without heartbeats, or one that cannot be reached, is dropped.
"""

from __future__ import annotations

import logging
import random
import socket
import threading
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Annotated
from urllib.parse import urlsplit

from flowcut.cli.command_line import Parser, needs, parse_first, program
from llava.serve.flags import add_server_flags

DISPATCH = ("lottery", "shortest_queue")


def build_parser() -> Parser:
    parser = Parser(__doc__)
    add_server_flags(parser, 21001)
    parser.add_argument("--dispatch-method", choices=DISPATCH, default="shortest_queue", help="how a worker is chosen")
    return parser


parse_first(__name__, build_parser)

with needs(__name__):
    import httpx
    from fastapi import Depends, FastAPI, Request, Response

    from llava.constants import CONTROLLER_HEART_BEAT_EXPIRATION
    from llava.serve.guards import BadRequest, body_of, guard, parse, read_body, respond
    from llava.serve.protocol import (
        DELIMITER,
        Address,
        GenerateRequest,
        HeartBeat,
        Message,
        Name,
        NoWorkerError,
        RegisterRequest,
        Splitter,
        WorkerLostError,
        WorkerStatus,
        encode,
        failure,
    )
    from llava.serve.server import hosts_of, serve
    from llava.utils import build_logger


logger = logging.getLogger(__name__)

STATUS_TIMEOUT = 5.0  # seconds for a worker's status
MOST_WORKERS = 1000
TRAIL = "x-llava-controllers"  # header of a forwarded question: the controllers that it went through
LOOP = 508  # HTTP's status for a request that came back
SILENCE = 60.0  # timeout in seconds without a byte; a working worker sends some regularly, see engine.KEEP_ALIVE


@dataclass
class Worker:
    """A registered worker. `last_heard` is on the monotonic clock; workers without heartbeats never expire."""

    status: WorkerStatus
    check_heart_beat: bool
    last_heard: float


class ModelName(Message):
    """Body of /get_worker_address."""

    model: Name


class WorkerName(Message):
    """Body of /unregister_worker."""

    worker_name: Address


class Controller:
    """The table of workers. Every method may be called from any thread.

    dispatch_method: "shortest_queue", or "lottery" with probabilities proportional to the workers' speeds.
    expiration: seconds without a heartbeat after which a worker is dropped.
    """

    def __init__(
        self, dispatch_method: str = "shortest_queue", expiration: float = CONTROLLER_HEART_BEAT_EXPIRATION
    ) -> None:
        if dispatch_method not in DISPATCH:
            raise ValueError(f"dispatch method {dispatch_method!r} is unknown; use {' or '.join(DISPATCH)}")
        self.dispatch_method = dispatch_method
        self.expiration = expiration
        self._workers: dict[str, Worker] = {}
        self._lock = threading.Lock()

    def register(self, name: str, check_heart_beat: bool, status: WorkerStatus | None = None) -> bool:
        """Add a worker, or update its status. False if no status is given and the worker does not report one. Raises
        BadRequest when there are too many.
        """
        status = status or ask_status(name)
        if status is None:
            return False
        with self._lock:
            known = name in self._workers
            if not known and len(self._workers) >= MOST_WORKERS:
                raise BadRequest(f"there are already {MOST_WORKERS} workers; unregister some")
            self._workers[name] = Worker(status, check_heart_beat, monotonic())
        logger.info("%s worker %s: %s", "known" if known else "new", name, ", ".join(status.model_names))
        return True

    def drop(self, name: str, reason: str) -> None:
        with self._lock:
            gone = self._workers.pop(name, None)
        if gone is not None:
            logger.info("worker %s dropped: %s", name, reason)

    def refresh(self) -> None:
        """Request every worker's status; workers that do not respond are dropped."""
        for name, worker in self.workers().items():
            if not self.register(name, worker.check_heart_beat):
                self.drop(name, "no answer")

    def heart_beat(self, name: str, queue_length: int) -> bool:
        """Whether the worker is known; an unknown one should register again."""
        with self._lock:
            worker = self._workers.get(name)
            if worker is None:
                return False
            worker.status.queue_length = queue_length
            worker.last_heard = monotonic()
            return True

    def workers(self) -> dict[str, Worker]:
        """The workers with recent heartbeats, by name; the others are dropped here."""
        oldest = monotonic() - self.expiration
        with self._lock:
            silent = [n for n, one in self._workers.items() if one.check_heart_beat and one.last_heard < oldest]
        for name in silent:
            self.drop(name, "no heart beat")
        with self._lock:
            return dict(self._workers)

    def models(self) -> list[str]:
        return sorted({name for worker in self.workers().values() for name in worker.status.model_names})

    def choose(self, model: str) -> str:
        """The address of a worker for a model, "" if there is none."""
        fitting = {name: one for name, one in self.workers().items() if model in one.status.model_names}
        if not fitting:
            return ""
        if self.dispatch_method == "lottery":
            [chosen] = random.choices(list(fitting), [one.status.speed for one in fitting.values()])
            return chosen
        chosen = min(fitting, key=lambda name: fitting[name].status.queue_length / fitting[name].status.speed)
        fitting[chosen].status.queue_length += 1  # until its next heartbeat reports the actual number
        return chosen

    def status(self) -> WorkerStatus:
        """The combined status of all workers, so that a controller can be a worker of another controller."""
        found = [worker.status for worker in self.workers().values()]
        return WorkerStatus(
            model_names=self.models()[:1000],
            speed=min(sum(one.speed for one in found), 1e6) or 1.0,
            queue_length=sum(one.queue_length for one in found),
        )


def ask_status(worker: str) -> WorkerStatus | None:
    """The status that a worker reports; None if it does not respond."""
    try:
        answer = httpx.post(f"{worker}/worker_get_status", timeout=STATUS_TIMEOUT, trust_env=False)
        return WorkerStatus.model_validate(answer.raise_for_status().json())
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        logger.warning("worker %s does not say what it serves (%s: %s)", worker, type(error).__name__, error)
        return None


Registration = Annotated[RegisterRequest, Depends(body_of(RegisterRequest))]
Unregistration = Annotated[WorkerName, Depends(body_of(WorkerName))]
Wanted = Annotated[ModelName, Depends(body_of(ModelName))]
Beat = Annotated[HeartBeat, Depends(body_of(HeartBeat))]


def build_app(controller: Controller, hosts: Collection[str] = ()) -> FastAPI:
    """The controller's web application. hosts: see `guards.known_hosts`."""
    identity = uuid.uuid4().hex

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with httpx.AsyncClient(timeout=httpx.Timeout(SILENCE), trust_env=False) as client:
            app.state.client = client
            yield

    app = guard(FastAPI(title="llava controller", lifespan=lifespan), hosts)

    @app.post("/register_worker")
    def register_worker(body: Registration, request: Request) -> dict[str, bool]:
        if _is_at(body.worker_name, request.scope.get("server")):
            raise BadRequest(f"{body.worker_name} is this controller itself; give the address of a worker")
        return {"registered": controller.register(body.worker_name, body.check_heart_beat, body.worker_status)}

    @app.post("/unregister_worker")
    def unregister_worker(body: Unregistration) -> None:
        controller.drop(body.worker_name, "it unregistered")

    @app.post("/refresh_all_workers")
    def refresh_all_workers() -> None:
        controller.refresh()

    @app.post("/list_models")
    def list_models() -> dict[str, list[str]]:
        return {"models": controller.models()}

    @app.post("/get_worker_address")
    def get_worker_address(body: Wanted) -> dict[str, str]:
        return {"address": controller.choose(body.model)}

    @app.post("/receive_heart_beat")
    def receive_heart_beat(body: Beat) -> dict[str, bool]:
        return {"exist": controller.heart_beat(body.worker_name, body.queue_length)}

    @app.post("/worker_get_status")
    def worker_get_status() -> WorkerStatus:
        return controller.status()

    @app.post("/worker_generate_stream")
    async def worker_generate_stream(request: Request) -> Response:
        content = await read_body(request)
        body = parse(GenerateRequest, content)
        trail = [name for name in request.headers.get(TRAIL, "").split(",") if name]
        if identity in trail:
            return Response(encode(failure(WorkerLostError("the question was sent back to its own controller"))), LOOP)
        headers = {"content-type": "application/json", TRAIL: ",".join([*trail, identity])}
        return await respond(_forward(controller, app.state.client, body.model, content, headers))

    return app


def _is_at(address: str, server: tuple[str, int] | None) -> bool:
    """Whether an address, in one of its usual spellings, is that of the socket where a request arrived."""
    if server is None:
        return False
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    here = {server[0], "localhost", "127.0.0.1", "::1", "0.0.0.0", "::", socket.gethostname()}
    return port == server[1] and parts.hostname in here


async def _forward(
    controller: Controller, client: httpx.AsyncClient, model: str, content: bytes, headers: dict[str, str]
) -> AsyncGenerator[bytes, None]:
    """A worker's answer, streamed by whole documents. A worker that cannot be reached is dropped, and the next one is
    tried.
    """
    while address := controller.choose(model):
        url, splitter = f"{address}/worker_generate_stream", Splitter()
        try:
            async with client.stream("POST", url, content=content, headers=headers) as answer:
                if answer.status_code == LOOP:
                    controller.drop(address, "it leads back to a controller that sent the question")
                    continue
                if answer.status_code != 400:  # whose body is a document that says what is wrong
                    answer.raise_for_status()
                async for chunk in answer.aiter_raw():
                    for document in splitter.feed(chunk):
                        yield document + DELIMITER
                splitter.close()
                return
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.InvalidURL) as error:
            controller.drop(address, f"cannot be reached ({error})")
        except httpx.TimeoutException:
            controller.drop(address, "silent in the middle of an answer")
            yield encode(failure(TimeoutError(f"worker {address} sent nothing for {SILENCE:g} s")))
            return
        except (httpx.HTTPError, WorkerLostError) as error:
            lost = WorkerLostError(f"worker {address} stopped answering ({type(error).__name__}: {error})")
            yield encode(failure(lost))
            return
    models = ", ".join(controller.models()) or "no model at all"
    yield encode(failure(NoWorkerError(f"no worker serves {model!r}; there is {models}")))


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    build_logger("controller", "controller.log", args.log_dir)
    serve(build_app(Controller(args.dispatch_method), hosts_of(args)), args.host, args.port)


if __name__ == "__main__":
    main()
