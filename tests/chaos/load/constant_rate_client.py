"""A client that sends requests at a constant rate over keep-alive connections, in one thread.

It is cheap (a thousand requests per second take a fifth of a core), because it shares the machine with the servers.
Every body is hashed and compared with the digest of the response, and that with the digest in the path, if any.
"""

import hashlib
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Self

import attrs

from tests.support.http_client import parse_head, request_bytes

CONNECT_TIMEOUT_S = 10.0
RESPONSE_TIMEOUT_S = 15.0
READ_BYTES = 64 * 1024


@attrs.frozen
class TimedResponse:
    """A complete response, and the monotonic times of its request and of its last byte."""

    began_at: float
    ended_at: float
    status: int
    digest: str
    is_stale: bool
    is_right: bool  # an error body, or bytes that have the digest

    @property
    def took_s(self) -> float:
        return self.ended_at - self.began_at


@attrs.define(eq=False)
class _Connection:
    """A keep-alive connection and the request that is running on it."""

    socket: socket.socket
    path: str = ""
    began_at: float = 0.0
    received: bytes = b""


class ConstantRateClient:
    """`responses` has all complete responses, `failures` how often a connection ended without one.

    `path` is one path for all requests, or a path for each.
    """

    def __init__(self, address: tuple[str, int], path: str | Iterable[str], connections: int) -> None:
        self.responses: list[TimedResponse] = []
        self.failures = 0
        self.unsent = 0  # requests for which no connection was free
        self._address = address
        self._paths = repeat(path) if isinstance(path, str) else iter(path)
        self._selector = selectors.DefaultSelector()
        self._idle: deque[_Connection | None] = deque([None] * connections)
        self._busy: set[_Connection] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in (*self._busy, *self._idle):
            if connection is not None:
                connection.socket.close()
        self._selector.close()

    def run(self, rate_per_s: float, for_s: float, until: Callable[[], bool] = lambda: False) -> list[TimedResponse]:
        """Send requests for so long (or until a condition holds), and wait for the rest; return the responses."""
        first = len(self.responses)
        began_at = time.monotonic()
        sent = 0
        while (now := time.monotonic()) < began_at + for_s and not until():
            while sent < (now - began_at) * rate_per_s:
                sent += 1
                self._send()
            self._wait(max(0.0, min(0.05, began_at + (sent + 1) / rate_per_s - time.monotonic())))
        deadline = time.monotonic() + RESPONSE_TIMEOUT_S
        while self._busy and time.monotonic() < deadline:
            self._wait(0.05)
        self._give_up(everything=True)
        return self.responses[first:]

    def _send(self) -> None:
        if not self._idle:
            self.unsent += 1
            return
        connection = self._idle.popleft()
        began_at = time.monotonic()
        try:
            if connection is None:
                connection = _Connection(socket.create_connection(self._address, CONNECT_TIMEOUT_S))
                connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.began_at, connection.path = began_at, next(self._paths)
            self._busy.add(connection)
            connection.socket.sendall(request_bytes("GET", connection.path, self._address, {}))
        except OSError:
            self._drop(connection)

    def _wait(self, at_most_s: float) -> None:
        for key, _ in self._selector.select(at_most_s):
            self._read(key.data)
        self._give_up()

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(READ_BYTES)
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
            return
        connection.received += data
        head, found, body = connection.received.partition(b"\r\n\r\n")
        if not found:
            return
        status, fields = parse_head(head)
        headers = {name.lower(): value for name, value in fields}
        if len(body) < int(headers["content-length"]):
            return
        digest = headers.get("docker-content-digest", "") if status == 200 else ""
        is_right = status != 200 or _is_right(connection.path, digest, body)
        is_stale = headers.get("warning", "").startswith("299 ")
        self.responses.append(TimedResponse(connection.began_at, time.monotonic(), status, digest, is_stale, is_right))
        connection.received = b""
        self._busy.discard(connection)
        if headers.get("connection") == "close":
            self._close(connection)
        else:
            self._idle.append(connection)

    def _give_up(self, *, everything: bool = False) -> None:
        """Drop connections without a response in time; with `everything`, all that still wait."""
        now = time.monotonic()
        for connection in [each for each in self._busy if everything or now - each.began_at > RESPONSE_TIMEOUT_S]:
            self._drop(connection)

    def _drop(self, connection: _Connection | None) -> None:
        """Drop a connection that ended: a failure if a request was running on it."""
        if connection is None or connection in self._busy:
            self.failures += 1
            self._idle.append(None)
        else:
            self._idle[self._idle.index(connection)] = None
        if connection is not None:
            self._busy.discard(connection)
            self._selector.unregister(connection.socket)
            connection.socket.close()

    def _close(self, connection: _Connection) -> None:
        self._selector.unregister(connection.socket)
        connection.socket.close()
        self._idle.append(None)


def _is_right(path: str, digest: str, body: bytes) -> bool:
    reference = path.rpartition("/")[2]
    return f"sha256:{hashlib.sha256(body).hexdigest()}" == digest and (":" not in reference or reference == digest)


def run_together(
    rate_clients: Sequence[ConstantRateClient], rate_per_s: float, for_s: float
) -> list[list[TimedResponse]]:
    """Run several clients at once, each at this rate; return the responses of each."""
    with ThreadPoolExecutor(len(rate_clients)) as pool:
        return list(pool.map(lambda rate_client: rate_client.run(rate_per_s, for_s), rate_clients))
