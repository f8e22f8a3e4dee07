"""Pooled connections that are used again only when the exchange before is provably over.

Mixed into the connection and pool classes of urllib3; a PoolManager uses them after `use_strict_pools`. A connection
goes back to its pool when its request was sent completely, its response was read to its end (`StrictResponse.is_over`),
and nothing came after that. Before it is used again it is checked once more: a byte that no request asked for closes
it. So a connection is never used again after an interim response other than 100, after a response with an ambiguous
end, and with anything unread on it.

No client can recognize a response that the server sends in the very moment in which the next request is on its way: it
is not distinguishable from the response to that request. Servers that do this do it again. So after bytes that no
request asked for, no connection to that host and port is used twice for SUSPENSION_S.
"""

import threading
import time
from collections.abc import Callable
from functools import cache, partial
from http.client import HTTPException, IncompleteRead, RemoteDisconnected
from ssl import SSLContext
from typing import Any

import urllib3
from cachetools import LRUCache
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from dockyard.http1.response import Idle, InvalidResponse, ResponseReader, StrictResponse, check_idle
from dockyard.http1.tls import make_tls_context

SUSPENSION_S = 60.0
MAX_SUSPENSIONS = 64


class StrictConnection:
    """Mixed into a connection class of urllib3, before it."""

    sock: Any
    found_unexpected_bytes = False
    _is_unused = True
    _is_request_sent = False
    _must_be_acknowledged = False
    _response: StrictResponse | None = None

    def make_reader(self, sock: Any) -> ResponseReader:
        """Create what reads the next response."""
        return ResponseReader(sock)

    def response_class(self, sock: Any, *args: Any, **kwargs: Any) -> StrictResponse:
        """Create the response to the request that was sent; http.client calls this."""
        reader = self.make_reader(sock)
        reader.must_be_acknowledged = self._must_be_acknowledged
        self._response = StrictResponse(reader, *args, **kwargs)
        return self._response

    def connect(self) -> None:
        self._is_unused = True
        super().connect()  # type: ignore[misc]

    def request(self, method: str, url: str, body: Any = None, *args: Any, **kwargs: Any) -> None:
        """Send a request. Raises InvalidResponse when the server sent something before it."""
        self._is_request_sent = False
        if self.sock is None:
            self.connect()
        if self._is_unused and check_idle(self.sock) is Idle.UNEXPECTED_BYTES:
            self.found_unexpected_bytes = True
            raise InvalidResponse("bytes before the request")
        # A body may be rejected before the server has received it.
        self._must_be_acknowledged = not self._is_unused and body is None
        self._is_unused = False
        super().request(method, url, body, *args, **kwargs)  # type: ignore[misc]
        self._is_request_sent = True

    @property
    def is_exchange_over(self) -> bool:
        """Whether the connection may be used again, as far as the last request and its response show."""
        if self._response is not None and self._response.end is Idle.UNEXPECTED_BYTES:
            self.found_unexpected_bytes = True
        return self._is_request_sent and self._response is not None and self._response.is_over

    @property
    def is_connected(self) -> bool:
        """Whether the connection is open and nothing arrived on it. urllib3 asks before it uses a connection again."""
        if self.sock is None:
            return False
        state = check_idle(self.sock)
        self.found_unexpected_bytes |= state is Idle.UNEXPECTED_BYTES
        return state is Idle.QUIET


class Suspensions:
    """The servers whose connections are not used again for some time. For many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: LRUCache[tuple[str, int | None], float] = LRUCache(MAX_SUSPENSIONS)

    def suspend(self, host: str, port: int | None) -> None:
        with self._lock:
            self._ends[host, port] = time.monotonic() + SUSPENSION_S

    def is_suspended(self, host: str, port: int | None) -> bool:
        with self._lock:
            return time.monotonic() < self._ends.get((host, port), 0.0)


class StrictPool:
    """Mixed into a connection pool class of urllib3, before it. Its connections are of a StrictConnection class."""

    host: str
    port: int | None

    def __init__(self, suspensions: Suspensions, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._suspensions = suspensions

    def _get_conn(self, timeout: float | None = None) -> Any:
        connection = super()._get_conn(timeout)  # type: ignore[misc]
        self._suspend_if_unexpected(connection)
        if not connection.is_closed and self._suspensions.is_suspended(self.host, self.port):
            connection.close()
        return connection

    def _put_conn(self, connection: Any) -> None:
        if connection is not None and not connection.is_closed and not connection.is_exchange_over:
            self._suspend_if_unexpected(connection)
            connection.close()
        super()._put_conn(connection)  # type: ignore[misc]

    def _make_request(self, connection: Any, method: str, url: str, *, target: str = "", **options: Any) -> Any:
        """Send a request and read the head of its response.

        `target` replaces the path and query of `url`, which urllib3 has normalized: it is sent as it is. To be passed
        to `PoolManager.urlopen`.
        """
        is_reused = not connection.is_closed
        try:
            return super()._make_request(connection, method, target or url, **options)  # type: ignore[misc]
        except HTTPException as exc:
            # What cannot be parsed on a connection that was used before came after the response before.
            is_truncated = isinstance(exc, RemoteDisconnected | IncompleteRead)
            connection.found_unexpected_bytes |= is_reused and not is_truncated
            self._suspend_if_unexpected(connection)
            raise

    def _suspend_if_unexpected(self, connection: Any) -> None:
        if connection.found_unexpected_bytes:
            connection.found_unexpected_bytes = False
            self._suspensions.suspend(self.host, self.port)


class _PlainConnection(StrictConnection, HTTPConnection):  # type: ignore[misc]
    pass


class _TLSConnection(StrictConnection, HTTPSConnection):  # type: ignore[misc]
    pass


class PlainPool(StrictPool, HTTPConnectionPool):  # type: ignore[misc]
    """The strict connections to a server without TLS."""

    ConnectionCls: Any = _PlainConnection


class TLSPool(StrictPool, HTTPSConnectionPool):  # type: ignore[misc]
    """The strict connections to a server with TLS."""

    ConnectionCls: Any = _TLSConnection


def use_strict_pools(
    manager: urllib3.PoolManager,
    plain_pool: Callable[..., Any] = PlainPool,
    tls_pool: Callable[..., Any] = TLSPool,
    make_tls_context: Callable[[], SSLContext] = make_tls_context,
) -> None:
    """Make a manager of pools use these classes with StrictPool.

    The TLS context is made for the first pool that needs one: loading the certificates takes tens of milliseconds.
    """
    suspensions = Suspensions()
    make_context_once = cache(make_tls_context)

    def make_tls_pool(host: str, port: int, **options: Any) -> Any:
        return tls_pool(suspensions, host, port, ssl_context=make_context_once(), **options)

    pool_classes: Any = {"http": partial(plain_pool, suspensions), "https": make_tls_pool}
    manager.pool_classes_by_scheme = pool_classes
