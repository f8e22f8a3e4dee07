"""Clients that send their headers a byte at a time, and clients that read nothing."""

import contextlib
import socket
import time
from typing import Self

from tests.support.deployment import Deployment
from tests.support.http_client import request_bytes
from tests.support.worker_state import workers_by_client_port

BYTE_EVERY_S = 1.0


class SlowClients:
    """Connections that are never done. The lists have how long the server kept those that it closed."""

    def __init__(self, deployment: Deployment, path: str, slow_headers: int, slow_readers: int) -> None:
        self._deployment = deployment
        address = deployment.address
        self.header_closed_s: list[float] = []
        self.reader_closed_s: list[float] = []
        self._headers: dict[socket.socket, float] = {}
        self._readers: dict[socket.socket, float] = {}
        self._held_before: set[int] = set()
        self._sent_at = 0.0
        request = request_bytes("GET", path, address, {})
        for kind, count, begin in (
            (self._headers, slow_headers, b"GET /v2/ HTTP/1.1\r\n"),
            (self._readers, slow_readers, request),
        ):
            for _ in range(count):
                connection = socket.socket()
                if kind is self._readers:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.settimeout(10)
                connection.connect(address)
                connection.sendall(begin)
                connection.setblocking(False)
                kind[connection] = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in (*self._headers, *self._readers):
            connection.close()

    def step(self) -> None:
        """Send one more byte of each header, and check which connections have been closed. Read nothing."""
        now = time.monotonic()
        if now - self._sent_at < BYTE_EVERY_S:
            return
        self._sent_at = now
        for connection, began_at in list(self._headers.items()):
            try:
                connection.send(b"X")
                is_open = not _has_ended(connection)
            except OSError:
                is_open = False
            if not is_open:
                self.header_closed_s.append(now - began_at)
                del self._headers[connection]
                connection.close()
        # A connection whose buffers are full does not report that the server has closed it.
        held = workers_by_client_port(self._deployment).keys()
        self._held_before.update(held)
        for connection, began_at in list(self._readers.items()):
            port = connection.getsockname()[1]
            if port in self._held_before and port not in held:
                self.reader_closed_s.append(now - began_at)
                del self._readers[connection]
                connection.close()

    @property
    def left(self) -> tuple[int, int]:
        """How many of each kind are still open."""
        return len(self._headers), len(self._readers)


def _has_ended(connection: socket.socket) -> bool:
    with contextlib.suppress(BlockingIOError):
        return not connection.recv(4096, socket.MSG_PEEK)
    return False
