"""Hostile requests to worker and controller, over real sockets."""

import asyncio
import base64
import contextlib
import io
import json
import logging
import socket
import threading
import time

import httpx
import pytest
from fastapi import FastAPI, Response
from PIL import Image

from llava.serve import guards
from llava.serve.client import stream
from llava.serve.controller import Controller, build_app
from llava.serve.flags import port_number
from llava.serve.guards import SendTimeout, known_hosts
from llava.serve.model_worker import ModelWorker
from llava.serve.protocol import WorkerStatus
from llava.serve.server import LocalServer
from llava.serve.worker import Place, Worker

CLIENT = httpx.Client(trust_env=False, timeout=20)  # one, because each costs a TLS context
JSON = {"content-type": "application/json"}
GOOD = {"model": "tiny", "prompt": "what is this ASSISTANT:", "temperature": 0, "max_new_tokens": 1}


@pytest.fixture(scope="module")
def services(engine):
    known = Controller()

    def make(url):
        worker = ModelWorker(engine, Place(url), "tiny")
        known.register(url, False, worker.status())
        return worker.build_app()

    with LocalServer(build_app(known)) as front, LocalServer(make) as back:
        yield front.url, back.url, known


def changed(**changes):
    return json.dumps({**GOOD, **changes}).encode()


def picture(size):
    buffer = io.BytesIO()
    Image.new("1", size).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


PICTURE = picture((8, 8))
WRONG_VALUES = {
    "model": [1, None, [], {}, "a\nb", "a\x1b[31m", "a" * 201],
    "prompt": [None, 1, [], {}, True],
    "temperature": [-1, "hot", None, [], "NaN", -1e-9],
    "top_p": [-0.1, 1.1, "x", {}, None, 1e308],
    "max_new_tokens": [-1, 1.5, "many", None, [], -(10**30)],
    "stop": [1, {}, [1], [None], ["a"] * 65, True],
    "images": ["a", 1, {}, [1], [None], ["?"], ["a"], ["Zm9v"], [PICTURE] * 2, [PICTURE + "\n\n="], ["é"], [""]],
    "pruner": [1, [], "flowcat", "flowcut", "flowcut:budget=nan", "flowcut:budget=-1", "a" * 1001, "none:x"],
    "seed": ["x", 1.5, 2**64, -(2**63) - 1, 10**400, []],
    "trace": ["maybe", 2, [], None],
    "rounds": [-1, 10, "x", None],
}
WRONG = {
    f"{name} {number}": changed(**{name: value})
    for name, found in WRONG_VALUES.items()
    for number, value in enumerate(found)
}
# A prompt with a place, so that these pictures are looked at.
WRONG |= {
    f"picture {n}": changed(prompt="<image>", images=[text])
    for n, text in enumerate(["?", "Zm9v", "", picture((1, 999))])
}
WRONG |= {
    "empty": b"",
    "a word": b"hello",
    "cut": changed()[:-5],
    "a list": b"[]",
    "null": b"null",
    "a number": b"1",
    "deep list": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "deep in a field": changed()[:-1] + b', "images": ' + b"[" * 100_000,
    "NaN": changed(temperature=float("nan")),
    "infinity": changed(temperature=float("inf")),
    "overflow": changed().replace(b'"temperature": 0', b'"temperature": 1e999'),
    "lone surrogate": changed().replace(b"what", rb"\ud800"),
    "lone surrogate in a name": changed().replace(b"tiny", rb"\udfff"),
    "no UTF-8": changed().replace(b"what", b"\xff\xfe"),
    "zero bytes": b"\0" * 1000,
    "UTF-16": json.dumps(GOOD).encode("utf-16"),
    "long digits": changed().replace(b'"max_new_tokens": 1', b'"max_new_tokens": ' + b"9" * 5000),
    "no prompt": b'{"model": "tiny"}',
    "two documents": changed() + changed(),
    "a million wrong images": changed(images=[1] * 1_000_000),
}


def refused(answer, line_ends=b""):
    """It is one line of JSON with a 4xx code, and no program text."""
    assert 400 <= answer.status_code < 500, answer.text[:300]
    assert answer.content.endswith(line_ends)
    document = json.loads(answer.content.removesuffix(line_ends))
    assert document["error"]["kind"] == "bad_request"
    assert document["text"].isprintable()
    assert len(document["text"]) < 2500
    assert "Traceback" not in document["text"]
    return document["text"]


def test_there_are_enough():
    assert len(WRONG) > 60


@pytest.mark.parametrize("which", ["controller", "worker"])
def test_hostile_questions_are_refused_in_one_line(services, which, caplog):
    url = services[0 if which == "controller" else 1]
    with caplog.at_level(logging.ERROR):
        for name, body in WRONG.items():
            try:
                refused(CLIENT.post(f"{url}/worker_generate_stream", content=body, headers=JSON), b"\0")
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from error
    assert not caplog.records
    *_, document = stream(url, GOOD)
    assert document["error_code"] == 0


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "image/png", "é" * 500])
def test_other_content_types_are_refused(services, kind):
    headers = {"content-type": kind.encode()} if kind else {}
    for url in services[:2]:
        answer = CLIENT.post(f"{url}/worker_generate_stream", content=changed(), headers=headers)
        assert answer.status_code == 415
        assert "is not application/json" in refused(answer, b"\0")
    answer = CLIENT.post(f"{services[0]}/register_worker", content=b'{"worker_name": "http://a:1"}', headers=headers)
    assert answer.status_code == 415
    assert "http://a:1" not in services[2].workers()


WRONG_NOTICES = [
    *[{"worker_name": name} for name in (1, None, "", "a", "ftp://a:1", "http://", "http://:1", "http://a:0")],
    *[{"worker_name": f"http://a{end}"} for end in (":70000", ":-1", ":x", ":1\nforged line", ":1 b", ":1?q", "/#f")],
    {"worker_name": "http://user:secret@a:1"},
    {"worker_name": "http://[::1"},
    {"worker_name": "http://" + "a" * 600},
    *[
        {"worker_name": "http://a:1", "worker_status": {"model_names": ["m"], **status}}
        for status in (
            *({"speed": speed} for speed in (0, -1, "x", None, 1e300)),
            *({"queue_length": length} for length in (-1, 0.5, 10**30, "x")),
            *({"model_names": names} for names in (None, "m", [1], ["a\nb"], ["m"] * 1001)),
            {"visual_tokens": -5},
            {"conv_mode": "a\rb"},
        )
    ],
]


def test_hostile_registrations_are_refused_and_forge_no_log_lines(services, caplog):
    with caplog.at_level(logging.INFO, "llava"):
        for body in WRONG_NOTICES:
            refused(CLIENT.post(f"{services[0]}/register_worker", json=body))
        for raw in (
            b'{"worker_name": "http://a:1", "worker_status": {"model_names": ["m"], "speed": NaN}}',
            *WRONG.values(),
        ):
            refused(CLIENT.post(f"{services[0]}/register_worker", content=raw, headers=JSON))
        for path in ("unregister_worker", "receive_heart_beat", "get_worker_address"):
            for body in ({}, [], {"worker_name": "a\nb", "model": "a\nb"}, {"worker_name": 1, "model": 1}):
                refused(CLIENT.post(f"{services[0]}/{path}", json=body))
    assert not [record for record in caplog.records if record.name.startswith("llava")]
    assert list(services[2].workers()) == [services[1]]


def test_a_controller_is_no_worker_of_itself(services):
    front, back, known = services
    port = front.rpartition(":")[2]
    for name in (front, f"http://localhost:{port}", f"http://127.0.0.1:{port}/"):
        body = {"worker_name": name, "worker_status": {"model_names": ["tiny"]}}
        assert "is this controller itself" in refused(CLIENT.post(f"{front}/register_worker", json=body))
    # Not noticed above: a second controller in between.
    with LocalServer(build_app(second := Controller())) as other:
        second.register(front, False, WorkerStatus(model_names=["loop"]))
        known.register(other.url, False, WorkerStatus(model_names=["loop"]))
        *_, document = stream(front, {**GOOD, "model": "loop"})
    assert document["text"].startswith("NoWorkerError: no worker serves 'loop'")
    known.drop(other.url, "for the test")
    assert list(known.workers()) == [back]


def test_the_number_of_workers_is_limited(monkeypatch):
    monkeypatch.setattr("llava.serve.controller.MOST_WORKERS", 2)
    known = Controller()
    for name in ("http://a", "http://b", "http://a"):
        known.register(name, False, WorkerStatus(model_names=["m"]))
    with pytest.raises(guards.BadRequest, match="already 2 workers"):
        known.register("http://c", False, WorkerStatus(model_names=["m"]))


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "", "localhost.evil.example", "[::1"])
def test_unknown_host_names_are_refused(services, host):
    for url in services[:2]:
        answer = CLIENT.post(f"{url}/worker_get_status", headers={"host": host})
        assert "start this service with --allowed-host to accept it" in refused(answer)


def test_known_host_names_are_accepted(services):
    for url in services[:2]:
        for host in ("localhost:1", "127.0.0.1", "[::1]:80", "192.168.1.5:3"):
            assert CLIENT.post(f"{url}/worker_get_status", headers={"host": host}).status_code == 200
    for hosts in (known_hosts("0.0.0.0", ["Controller.example"]), {"*"}):
        with LocalServer(build_app(Controller(), hosts)) as server:
            answer = CLIENT.post(f"{server.url}/list_models", headers={"host": "controller.example:1"})
            assert answer.status_code == 200


def raw(url, content, wait=2.0):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), wait) as connection:
        connection.sendall(content)
        with contextlib.suppress(OSError):
            return connection.recv(4096)
        return b""


HEAD = b"POST /worker_generate_stream HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_nonsense_below_http_s_bodies(services, caplog):
    with caplog.at_level(logging.ERROR):
        for url in services[:2]:
            for content in (
                HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n",
                HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n",
                HEAD + b"Content-Length: -1\r\n\r\n",
                HEAD + b"Content-Length: x\r\n\r\n{}",
                b"\0" * 100 + b"\r\n\r\n",
            ):
                answer = raw(url, content)
                assert answer.startswith(b"HTTP/1.1 4") or not answer
                assert b"Traceback" not in answer
            raw(url, HEAD + b"Content-Length: 100\r\n\r\n{", wait=0.05)  # leaves in the middle
            *_, document = stream(url, GOOD)
            assert document["error_code"] == 0
    assert not [record for record in caplog.records if record.exc_info]


def test_bodies_that_are_too_large_or_never_arrive(services, monkeypatch):
    monkeypatch.setattr(guards, "RECEIVE_TIMEOUT", 0.1)
    assert raw(services[1], HEAD + b"Content-Length: 100\r\n\r\n{").startswith(b"HTTP/1.1 408")
    with pytest.raises(guards.BadRequest, match="larger than 0 MiB"):
        asyncio.run(guards.read_body(Given(b"a" * 100), 10))
    answer = CLIENT.post(f"{services[0]}/register_worker", content=b" " * (2**20 + 1), headers=JSON)
    assert answer.status_code == 413


class Given:
    """A request's body."""

    headers = JSON

    def __init__(self, body):
        self.body = body

    async def stream(self):
        yield self.body


class Talker(Worker):
    """Says more than fits into any buffer."""

    async def generate(self, request):
        for _ in range(100 if request.prompt == "much" else 1):
            yield {"text": "a" * 10**6, "error_code": 0}


def test_clients_that_never_read_lose_their_place(monkeypatch):
    monkeypatch.setattr(guards, "SEND_TIMEOUT", 0.3)
    with LocalServer(lambda url: Talker("talker", Place(url, limit=1)).build_app()) as server:
        body = json.dumps({"prompt": "much"}).encode()
        host, port = server.url.removeprefix("http://").split(":")
        deaf = [socket.create_connection((host, int(port))) for _ in range(2)]
        for connection in deaf:
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        began = time.monotonic()
        *_, document = stream(server.url, {"prompt": "little"})
        assert document["error_code"] == 0
        assert time.monotonic() - began < 60  # a client that is never given up would keep its place for ever
        for connection in deaf:
            connection.close()
    assert SendTimeout(None).seconds == 0.3


def test_the_status_is_told_while_large_pictures_are_decoded(engine, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr("llava.serve.limits.decode_image", lambda *_: released.wait(5) and Image.new("RGB", (8, 8)))
    with LocalServer(lambda url: ModelWorker(engine, Place(url), "tiny").build_app()) as server:
        results = []
        request = {**GOOD, "prompt": "<image> ASSISTANT:", "images": [PICTURE]}
        asking = threading.Thread(target=lambda: results.extend(stream(server.url, request)))
        asking.start()
        for _ in range(200):
            status = CLIENT.post(f"{server.url}/worker_get_status", timeout=1).json()
            if status["queue_length"] == 1:
                break
        assert status["queue_length"] == 1
        released.set()
        asking.join()
    assert results[-1]["error_code"] == 0


@pytest.mark.parametrize("end", [b'{"text": "ha', b""])
def test_half_a_document_is_not_glued_to_an_error(end):
    """A worker that dies, or one whose answer just stops."""
    app = FastAPI()

    @app.post("/worker_generate_stream")
    def half():
        return Response(
            b'{"text": "a", "error_code": 0}\0' + end, headers={"content-length": "1000"} if not end else {}
        )

    with LocalServer(app) as broken, LocalServer(build_app(known := Controller())) as front:
        known.register(broken.url, False, WorkerStatus(model_names=["tiny"]))
        answer = CLIENT.post(f"{front.url}/worker_generate_stream", json=GOOD)
    documents = [json.loads(part) for part in answer.content.split(b"\0") if part]
    assert [document["error_code"] for document in documents] == [0, 3]
    assert documents[-1]["error"]["kind"] == "worker_lost"


@pytest.mark.parametrize("text", ["70000", "0", "-1", "x", "", "٣", "1.5"])
def test_ports_are_checked(text):
    with pytest.raises(Exception, match="is not a port; give a number from 1 to 65535"):
        port_number(text)
    assert port_number("65535") == 65535
