"""A web application in a thread of the calling process, for the demo and the tests."""

from __future__ import annotations

import argparse
import socket
import threading
from collections.abc import Callable
from typing import Any

import uvicorn

from llava.serve.guards import known_hosts

GRACE = 30  # seconds that running answers have to finish when a server stops


def hosts_of(args: argparse.Namespace) -> frozenset[str]:
    return known_hosts(args.host, args.allowed_host)


def serve(app: Any, host: str, port: int) -> None:
    """Run an application until Ctrl-C or SIGTERM; running answers may finish first. Requests are not logged."""
    uvicorn.run(app, host=host, port=port, log_level="info", access_log=False, timeout_graceful_shutdown=GRACE)


class LocalServer:
    """An application in a thread of this process: `with LocalServer(app) as server: server.url`.

    app: the application, or a function that makes it from its address. port: 0 for a free one.

    Raises OSError when the port is taken, RuntimeError when the application does not start.
    """

    def __init__(self, app: Any | Callable[[str], Any], host: str = "127.0.0.1", port: int = 0, grace: int = 1) -> None:
        self._socket = socket.create_server((host, port))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://{host}:{self.port}"
        made = app if hasattr(app, "router") else app(self.url)
        config = uvicorn.Config(made, log_level="warning", timeout_graceful_shutdown=grace)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def __enter__(self) -> LocalServer:
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.02)
            if not self._thread.is_alive():
                raise RuntimeError(f"the server at {self.url} did not start; its log says why")
        return self

    def stop(self) -> None:
        """Let running answers finish, then stop."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def __exit__(self, *_: object) -> None:
        self.stop()
