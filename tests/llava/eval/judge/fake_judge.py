"""A local server with OpenAI's chat-completions protocol whose replies a test decides."""

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple


class Response(NamedTuple):
    """What the server sends. raw: the whole body instead of a chat completion. delay: seconds before it."""

    text: str | None = ""
    status: int = 200
    headers: Mapping[str, str] = {}
    raw: str | None = None
    delay: float = 0.0


class FakeJudge:
    """Records what it is asked; `answer` maps a request's body and number (from 0) to a Response, or to its text."""

    def __init__(self, answer: Callable[[dict[str, Any], int], Response | str]) -> None:
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        self.times: list[float] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.url = ""

    def __len__(self) -> int:
        return len(self.bodies)

    def users(self) -> list[str]:
        """The user's texts of all requests."""
        return [body["messages"][-1]["content"] for body in self.bodies]

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        with self.lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            yield
        finally:
            with self.lock:
                self.at_once -= 1


def handler_of(judge: FakeJudge) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with judge.lock:
                number = len(judge.bodies)
                judge.bodies.append(body)
                judge.authorizations.append(self.headers["Authorization"])
                judge.times.append(time.monotonic())
            with judge.busy():
                response = judge.answer(body, number) if self.path == "/v1/chat/completions" else Response(status=404)
                self.send(response if isinstance(response, Response) else Response(response))

        def send(self, response: Response):
            time.sleep(response.delay)
            whole = {
                "id": "x",
                "model": "fake-judge-2026",
                "choices": [{"index": 0, "message": {"role": "assistant", "content": response.text}}],
            }
            content = (json.dumps(whole) if response.raw is None else response.raw).encode()
            self.send_response(response.status)
            for name, value in response.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

        def handle(self):
            with contextlib.suppress(OSError):  # the client hung up
                super().handle()

    return Handler


@contextlib.contextmanager
def serving(answer: Callable[[dict[str, Any], int], Response | str]) -> Iterator[FakeJudge]:
    """A fake judge under its `url` for as long as the block lasts."""
    judge = FakeJudge(answer)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_of(judge)) as server:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        judge.url = f"http://127.0.0.1:{server.server_port}/v1"
        yield judge
        server.shutdown()


def error(message: str, code: str | None = None) -> str:
    return json.dumps({"error": {"message": message, "code": code}})
