"""Read a file from the web, from public addresses only and within limits."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager, suppress
from threading import Timer
from time import monotonic
from urllib.parse import SplitResult, urljoin, urlsplit

SECONDS = 30.0  # for the whole fetch, with name resolution and redirects
REDIRECTS = 3
_MOVED = (301, 302, 303, 307, 308)
_CHUNK = 1 << 16
# Both contain an IPv4 address in their last 32 bits, which is the destination.
_TRANSLATED = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: str) -> bool:
    """Whether an IP address is public, including an IPv4 address inside an IPv6 one."""
    found: Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if any(found in network for network in _TRANSLATED):
            return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
        inside = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inside is not None:
            return is_public(str(inside))
    return found.is_global and not found.is_multicast


def fetch(
    url: str,
    largest: int,
    seconds: float = SECONDS,
    allow_private: bool = False,
    redirects: int = REDIRECTS,
) -> bytes:
    """The bytes at an http(s) address.

    largest: maximal number of bytes. seconds: for the whole fetch. allow_private: also permit loopback, private and
        link-local addresses, for your own servers.

    Every address of a host name is checked, again after each redirect, and the connection goes to the checked
    address itself, so that a second, different resolution of the name has no effect. No proxy is used.
    Raises ValueError, one line, when a rule forbids it; OSError or http.client.HTTPException when the network fails.
    """
    deadline = monotonic() + seconds
    for _ in range(redirects + 1):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url} is not an http(s) address")
        content, location = _get(parts, largest, deadline, seconds, allow_private)
        if location is None:
            return content
        url = urljoin(url, location)
    raise ValueError(f"more than {redirects} redirects; give the final address")


def _get(
    parts: SplitResult, largest: int, deadline: float, seconds: float, allow_private: bool
) -> tuple[bytes, str | None]:
    """-> the body, or the target of a redirect."""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    host = parts.hostname or ""
    addresses = _addresses(host, port, deadline, seconds, allow_private)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    with _connection(parts.scheme, host, port, addresses, deadline, seconds) as connection:
        connection.request("GET", target, headers={"User-Agent": "llava-flowcut"})
        response = connection.getresponse()
        if response.status in _MOVED and (location := response.getheader("Location")):
            return b"", location
        if response.status != 200:
            raise ValueError(f"the server answered {response.status} {response.reason}")
        announced = response.getheader("Content-Length") or ""
        content = bytearray()
        too_large = announced.isdigit() and int(announced) > largest
        while not too_large and (chunk := response.read1(_CHUNK)):
            content += chunk
            too_large = len(content) > largest
        if too_large:
            raise ValueError(f"larger than {largest >> 20} MiB")
        return bytes(content), None


def _addresses(host: str, port: int, deadline: float, seconds: float, allow_private: bool) -> list[str]:
    """The addresses of a name, all checked. The system's resolver has no timeout, hence the thread."""
    pool = ThreadPoolExecutor(1)
    try:
        waiting = pool.submit(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = waiting.result(timeout=max(deadline - monotonic(), 0))
    except FutureTimeout:
        raise ValueError(f"no answer within {seconds:g} s") from None
    finally:
        pool.shutdown(wait=False)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not allow_private and (inside := [address for address in addresses if not is_public(address)]):
        which = host if host in inside else f"{host} ({inside[0]})"
        raise ValueError(f"{which} is not a public address; --allow-private permits it")
    return addresses


@contextmanager
def _connection(
    scheme: str, host: str, port: int, addresses: list[str], deadline: float, seconds: float
) -> Iterator[http.client.HTTPConnection]:
    """An open connection to the first address that accepts one; a timer closes it after the time limit.

    With a time limit per read, a server that sends a byte now and then could continue for ever.
    """
    late = ValueError(f"no answer within {seconds:g} s")
    raw = _open(addresses, port, deadline)
    connection = http.client.HTTPConnection(host, port)
    timer = Timer(max(deadline - monotonic(), 0), _cut, [raw])
    timer.daemon = True
    timer.start()
    try:
        context = ssl.create_default_context() if scheme == "https" else None
        # The certificate is checked for the name; the connection goes to the address.
        connection.sock = context.wrap_socket(raw, server_hostname=host) if context else raw
        yield connection
    except (OSError, http.client.HTTPException):
        if monotonic() >= deadline:
            raise late from None
        raise
    finally:
        timer.cancel()
        connection.close()
        raw.close()
    if monotonic() >= deadline:  # a body without a length ends early, without an error, when the connection is closed
        raise late


def _cut(raw: socket.socket) -> None:
    with suppress(OSError):  # already closed
        raw.shutdown(socket.SHUT_RDWR)


def _open(addresses: list[str], port: int, deadline: float) -> socket.socket:
    failure: OSError | None = None
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout=max(deadline - monotonic(), 0.001))
        except OSError as error:
            failure = error
    raise failure or OSError("the name has no address")
