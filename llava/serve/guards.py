"""What protects the web applications of controller and workers: checked bodies and hosts, and a timeout for sending."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection
from contextlib import aclosing
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava.serve.protocol import DELIMITER, encode, failure, is_bad_request

logger = logging.getLogger(__name__)

LARGEST_BODY = 128 * 2**20  # bytes of a question
LARGEST_NOTICE = 2**20  # bytes of any other request
RECEIVE_TIMEOUT = 60.0  # seconds for a whole request to arrive
SEND_TIMEOUT = 30.0  # seconds in which a client takes a part of its answer
MOST_PROBLEMS = 3  # that are told of a malformed body

Body = TypeVar("Body", bound=BaseModel)


class BadRequest(ValueError):
    """A request that is refused, with the reason in one line."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


async def read_body(request: Request, largest: int = LARGEST_BODY) -> bytes:
    """The bytes of a JSON request. Raises BadRequest. Call it before the response begins, which would otherwise take
    the body for a disconnect of the client.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # Browsers let any web page post other types here without asking; LLaVA's clients send this one.
    if kind != "application/json":
        raise BadRequest(f"content type {kind[:100]!r} is not application/json; set the header Content-Type", 415)
    body = bytearray()
    try:
        async with asyncio.timeout(RECEIVE_TIMEOUT):
            async for chunk in request.stream():
                body += chunk
                if len(body) > largest:
                    raise BadRequest(
                        f"the request is larger than {largest >> 20} MiB; send fewer or smaller images", 413
                    )
    except TimeoutError:
        raise BadRequest(f"the request did not arrive within {RECEIVE_TIMEOUT:g} s", 408) from None
    return bytes(body)


def parse(kind: type[Body], body: bytes) -> Body:
    """A body's content. Raises BadRequest, which names the first fields that are wrong."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        problems = [f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in found[:MOST_PROBLEMS]]
        if len(found) > MOST_PROBLEMS:
            problems.append(f"and {len(found) - MOST_PROBLEMS} more")
        raise BadRequest(f"malformed request ({'; '.join(problems)})") from None


def body_of(kind: type[Body]) -> Callable[[Request], Awaitable[Body]]:
    """A dependency for FastAPI: the parsed body of a request that is no question."""

    async def read(request: Request) -> Body:
        return parse(kind, await read_body(request, LARGEST_NOTICE))

    return read


class DocumentResponse(StreamingResponse):
    """An answer's documents. Whatever happens to the connection, the answer is closed at its end, which frees its
    place; Starlette leaves that to garbage collection.
    """

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None]) -> None:
        async def documents() -> AsyncIterator[bytes]:
            yield first
            async for document in rest:
                yield document

        super().__init__(documents(), 400 if is_bad_request(first.rstrip(DELIMITER)) else 200)
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._rest):
            await super().__call__(scope, receive, send)


async def respond(documents: AsyncGenerator[bytes, None]) -> Response:
    """An answer's documents as a response, with status 400 if the first of them says that the request is wrong."""
    return DocumentResponse(await anext(documents, b""), documents)


def known_hosts(host: str, more: Collection[str] = ()) -> frozenset[str]:
    """Names under which a service that listens on `host` is addressed, besides localhost and IP addresses."""
    return frozenset(name.lower() for name in (host, socket.gethostname(), *more))


def guard(app: FastAPI, hosts: Collection[str] = (), stream: str = "/worker_generate_stream") -> FastAPI:
    """Install all guards.

    hosts: see `known_hosts`; "*" allows every name. stream: the path whose answers end with a zero byte.
    """

    async def refuse(request: Request, error: Any) -> Response:
        document = failure(error)
        if request.url.path == stream:
            return Response(encode(document), error.status, media_type="application/json")
        return JSONResponse(document, error.status)

    async def gone(request: Request, error: Any) -> Response:
        return Response(status_code=400)  # nobody reads it

    app.add_exception_handler(BadRequest, refuse)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_middleware(HostCheck, hosts=hosts)
    app.add_middleware(SendTimeout)
    return app


class HostCheck:
    """Refuses requests for unknown host names: a web page whose name was pointed to this machine (DNS rebinding) could
    otherwise use its services. Addresses in numbers are always accepted, because no such page has one.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "*" not in self.hosts:
            given = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            if not self._known(given):
                said = f"host {given[:100]!r} is unknown here; start this service with --allowed-host to accept it"
                await JSONResponse(failure(BadRequest(said)), 400)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _known(self, given: str) -> bool:
        try:
            name = (urlsplit(f"//{given}").hostname or "").lower()
        except ValueError:
            return False
        if name == "localhost" or name in self.hosts:
            return True
        try:
            return bool(ipaddress.ip_address(name))
        except ValueError:
            return False


class _Stuck(Exception):
    """A client does not take its answer."""


class SendTimeout:
    """Ends the answer of a client that stops reading, which would otherwise occupy its place as long as it likes."""

    def __init__(self, app: ASGIApp, seconds: float | None = None) -> None:
        self.app, self.seconds = app, SEND_TIMEOUT if seconds is None else seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def limited(message: Message) -> None:
            try:
                async with asyncio.timeout(self.seconds):
                    await send(message)
            except TimeoutError:
                raise _Stuck from None

        try:
            await self.app(scope, receive, limited)
        except _Stuck:
            logger.warning("a client read nothing for %g s; its answer was ended", self.seconds)
