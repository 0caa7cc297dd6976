"""Fetching from the web: what is forbidden, and that the limits hold. All servers are local."""

import contextlib
import http.server
import socket
import threading
import time

import pytest

from llava.eval.media import fetch as fetching
from llava.eval.media.fetch import fetch, is_public

CONTENT = bytes(range(256)) * 8


@pytest.fixture(scope="module")
def server():
    """/ok, /away?where=..., /loop, /long (no announced length), /slow (a byte now and then), /gone."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            where = self.path.partition("?")[2]
            if self.path.startswith("/away") or self.path == "/loop":
                self.send_response(302)
                self.send_header("Location", where or "/loop")
                self.end_headers()
                return
            self.send_response(404 if self.path == "/gone" else 200)
            if self.path == "/large":
                self.send_header("Content-Length", str(10**12))
            self.end_headers()
            if self.path == "/slow":
                for _ in range(100):
                    self.wfile.write(b".")
                    time.sleep(0.1)
            elif self.path == "/host":
                self.wfile.write(self.headers["Host"].encode())
            else:
                self.wfile.write(CONTENT)

        def log_message(self, *_):
            pass

        def handle(self):
            with contextlib.suppress(OSError):  # the client hung up, as it should
                super().handle()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        found.daemon_threads = True
        threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "224.0.0.1",
        ),
        *(
            "::1",
            "fe80::1",
            "fe80::1%eth0",
            "fc00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
        ),
    ],
)
def test_inner_addresses_are_told_from_public_ones(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_ones_are_taken(address):
    assert is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1"])
def test_loopback_is_refused_however_it_is_spelled(server, host):
    port = server.rsplit(":", 1)[1]
    with pytest.raises((ValueError, OSError)) as error:
        fetch(f"http://{host}:{port}/ok", 10**6)
    assert isinstance(error.value, socket.gaierror) or "is not a public address" in str(error.value)


def test_with_permission_it_is_fetched(server):
    assert fetch(f"{server}/ok", len(CONTENT), allow_private=True) == CONTENT


@pytest.mark.parametrize(
    ("path", "largest", "said"),
    [
        ("/ok", 100, "larger than"),
        ("/large", 10**6, "larger than"),
        ("/gone", 10**6, "404"),
        ("/loop", 10**6, "more than 3 redirects"),
        ("/away?ftp://127.0.0.1/a", 10**6, "is not an http"),
        ("/away?file:///etc/passwd", 10**6, "is not an http"),
    ],
)
def test_the_limits_hold(server, path, largest, said):
    with pytest.raises(ValueError, match=said) as error:
        fetch(server + path, largest, allow_private=True)
    assert "\n" not in str(error.value)


def test_the_time_limit_is_for_everything_together(server):
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"no answer within 0\.4 s"):
        fetch(f"{server}/slow", 10**6, seconds=0.4, allow_private=True)
    assert time.monotonic() - began < 9  # the whole answer takes ten


def test_a_silent_server_does_not_hold_anybody_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(ValueError, match=r"no answer within 0\.3 s"):
            fetch(url, 10, seconds=0.3, allow_private=True)


def resolver(monkeypatch, answers):
    """Names resolve to `answers`, one list of addresses per question; "8.8.8.8" stands for the test server."""
    asked = iter(answers)

    look_up = socket.getaddrinfo

    def getaddrinfo(host, port, *rest, **more):
        if host == "127.0.0.1":  # where connections are led to below
            return look_up(host, port, *rest, **more)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in next(asked)]

    connected = []
    real = socket.create_connection

    def create_connection(address, timeout):
        connected.append(address[0])
        return real(("127.0.0.1", address[1]), timeout)

    monkeypatch.setattr(fetching.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(fetching.socket, "create_connection", create_connection)
    return connected


def test_the_connection_goes_to_the_address_that_was_checked(server, monkeypatch):
    """A name that would answer differently a second time is not asked a second time."""
    connected = resolver(monkeypatch, [["8.8.8.8"]])
    port = server.rsplit(":", 1)[1]
    assert fetch(f"http://somewhere.example:{port}/host", 1000) == f"somewhere.example:{port}".encode()
    assert connected == ["8.8.8.8"]


def test_one_inner_address_among_several_is_enough_to_refuse(server, monkeypatch):
    connected = resolver(monkeypatch, [["8.8.8.8", "10.0.0.1"]])
    with pytest.raises(ValueError, match=r"somewhere\.example \(10\.0\.0\.1\) is not a public address"):
        fetch("http://somewhere.example/", 1000)
    assert connected == []


def test_a_redirect_is_checked_again(server, monkeypatch):
    connected = resolver(monkeypatch, [["8.8.8.8"], ["127.0.0.1"]])
    port = server.rsplit(":", 1)[1]
    with pytest.raises(ValueError, match=r"inner\.example \(127\.0\.0\.1\)"):
        fetch(f"http://somewhere.example:{port}/away?http://inner.example:{port}/ok", 1000)
    assert connected == ["8.8.8.8"]
