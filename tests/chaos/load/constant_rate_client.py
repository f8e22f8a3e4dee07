"""Paths asked for at a steady rate over kept connections, by one thread: what each answer said, and when.

Cheap on purpose (a thousand requests a second are a fifth of a core), because it shares the machine with the servers
that it asks. Every body is hashed and compared with the digest that the answer names, and that with one in the path.
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

CONNECT_LIMIT_S = 10.0
ANSWER_LIMIT_S = 15.0
READ_BYTES = 64 * 1024


@attrs.frozen
class TimedResponse:
    """A whole answer: when it was asked for and when its last byte came (monotonic), and what it said."""

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
class _Line:
    """One kept connection and the request that runs on it."""

    socket: socket.socket
    path: str = ""
    began_at: float = 0.0
    received: bytes = b""


class ConstantRateClient:
    """`answers` has what came, `failures` how often a connection ended without an answer.

    `path` is the one that is always asked for, or as many as will be.
    """

    def __init__(self, address: tuple[str, int], path: str | Iterable[str], connections: int) -> None:
        self.responses: list[TimedResponse] = []
        self.failures = 0
        self.unasked = 0  # the time had come and every connection still waited
        self._address = address
        self._paths = repeat(path) if isinstance(path, str) else iter(path)
        self._selector = selectors.DefaultSelector()
        self._idle: deque[_Line | None] = deque([None] * connections)
        self._busy: set[_Line] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for line in (*self._busy, *self._idle):
            if line is not None:
                line.socket.close()
        self._selector.close()

    def run(self, rate_per_s: float, for_s: float, until: Callable[[], bool] = lambda: False) -> list[TimedResponse]:
        """Ask so often for so long (or until the condition holds), then wait for what is under way; these responses."""
        first = len(self.responses)
        began_at = time.monotonic()
        asked = 0
        while (now := time.monotonic()) < began_at + for_s and not until():
            while asked < (now - began_at) * rate_per_s:
                asked += 1
                self._ask()
            self._wait(max(0.0, min(0.05, began_at + (asked + 1) / rate_per_s - time.monotonic())))
        deadline = time.monotonic() + ANSWER_LIMIT_S
        while self._busy and time.monotonic() < deadline:
            self._wait(0.05)
        self._give_up(everything=True)
        return self.responses[first:]

    def _ask(self) -> None:
        if not self._idle:
            self.unasked += 1
            return
        line = self._idle.popleft()
        began_at = time.monotonic()
        try:
            if line is None:
                line = _Line(socket.create_connection(self._address, CONNECT_LIMIT_S))
                line.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._selector.register(line.socket, selectors.EVENT_READ, line)
            line.began_at, line.path = began_at, next(self._paths)
            self._busy.add(line)
            line.socket.sendall(request_bytes("GET", line.path, self._address, {}))
        except OSError:
            self._drop(line)

    def _wait(self, at_most_s: float) -> None:
        for key, _ in self._selector.select(at_most_s):
            self._read(key.data)
        self._give_up()

    def _read(self, line: _Line) -> None:
        try:
            data = line.socket.recv(READ_BYTES)
        except OSError:
            data = b""
        if not data:
            self._drop(line)
            return
        line.received += data
        head, found, body = line.received.partition(b"\r\n\r\n")
        if not found:
            return
        status, fields = parse_head(head)
        headers = {name.lower(): value for name, value in fields}
        if len(body) < int(headers["content-length"]):
            return
        digest = headers.get("docker-content-digest", "") if status == 200 else ""
        is_right = status != 200 or _is_right(line.path, digest, body)
        is_stale = headers.get("warning", "").startswith("299 ")
        self.responses.append(TimedResponse(line.began_at, time.monotonic(), status, digest, is_stale, is_right))
        line.received = b""
        self._busy.discard(line)
        if headers.get("connection") == "close":
            self._close(line)
        else:
            self._idle.append(line)

    def _give_up(self, *, everything: bool = False) -> None:
        """A server may hold a connection for as long as it likes: a client does not."""
        now = time.monotonic()
        for line in [each for each in self._busy if everything or now - each.began_at > ANSWER_LIMIT_S]:
            self._drop(line)

    def _drop(self, line: _Line | None) -> None:
        """The connection ended; one that nothing was asked on is closed without a word."""
        if line is None or line in self._busy:
            self.failures += 1
            self._idle.append(None)
        else:
            self._idle[self._idle.index(line)] = None
        if line is not None:
            self._busy.discard(line)
            self._selector.unregister(line.socket)
            line.socket.close()

    def _close(self, line: _Line) -> None:
        self._selector.unregister(line.socket)
        line.socket.close()
        self._idle.append(None)


def _is_right(path: str, digest: str, body: bytes) -> bool:
    reference = path.rpartition("/")[2]
    return f"sha256:{hashlib.sha256(body).hexdigest()}" == digest and (":" not in reference or reference == digest)


def run_together(
    rate_clients: Sequence[ConstantRateClient], rate_per_s: float, for_s: float
) -> list[list[TimedResponse]]:
    """Each at this rate and all at once; the responses of each."""
    with ThreadPoolExecutor(len(rate_clients)) as pool:
        return list(pool.map(lambda rate_client: rate_client.run(rate_per_s, for_s), rate_clients))
