"""The door to urllib3: pooled connections, one request, one answer.

urllib3 keeps the connections and speaks HTTP; what is decided is decided here. It follows no redirect, retries
nothing, decodes nothing, and sends the headers that it is given. Its connections are made and read by `sockets.py`,
so that each wait fits the request's deadline and each address was checked. Its exceptions end here, as `UpstreamError`.
"""

import logging
import time
from collections.abc import Mapping
from functools import cache
from http.client import HTTPException, HTTPResponse, IncompleteRead, RemoteDisconnected
from typing import Any, cast

import attrs
import urllib3
from urllib3 import exceptions as failures
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from dockyard import __version__
from dockyard.config.settings import Upstream, UpstreamLimits
from dockyard.upstream import errors
from dockyard.upstream.dialer import Attempt, DialError, Resolver, Stage
from dockyard.upstream.egress import make_tls_context, split_proxy
from dockyard.upstream.errors import UpstreamError
from dockyard.upstream.network_zones import NetworkZone, find_literal_zone, is_zone_allowed
from dockyard.upstream.urls import Url, is_in_host_list

MAX_POOLS = 16
MAX_IDLE_CONNECTIONS = 64
MAX_IDLE_S = 60.0
MAX_WAIT_S = 3600.0
MAX_DRAINED_BYTES = 64 * 1024
READ_BYTES = 64 * 1024
MAX_HEADER_BYTES = 64 * 1024  # of all headers; http.client takes a hundred of that size


class _Watched:
    """What our connections do differently."""

    watch: Attempt
    zone: NetworkZone = NetworkZone.PUBLIC
    proxy: Any
    port: int
    _dns_host: str

    def _new_conn(self) -> Any:
        is_proxy = self.proxy is not None
        sock, zone = self.watch.dial(self._dns_host, self.port, is_proxy=is_proxy)
        self.zone = self.watch.zone = NetworkZone.PUBLIC if is_proxy else zone
        self.watch.stage = Stage.TLS if isinstance(self, HTTPSConnection) else Stage.ANSWER
        return sock

    def response_class(self, sock: Any, *args: Any, **kwargs: Any) -> HTTPResponse:
        return HTTPResponse(cast(Any, self.watch.tap(sock)), *args, **kwargs)


class _PlainConnection(_Watched, HTTPConnection):  # type: ignore[misc]
    pass


class _TLSConnection(_Watched, HTTPSConnection):  # type: ignore[misc]
    def connect(self) -> None:
        super().connect()
        self.watch.stage = Stage.ANSWER

    def _tunnel(self) -> None:
        self.watch.stage = Stage.CONNECT
        super()._tunnel()
        self.watch.stage = Stage.TLS


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection

    # The pools never block, so the time limit for a free connection is without use; it carries the watch.
    def _get_conn(self, timeout: Any = None) -> Any:
        return _watched(super()._get_conn(), timeout)


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection

    def _get_conn(self, timeout: Any = None) -> Any:
        return _watched(super()._get_conn(), timeout)

    def _validate_conn(self, conn: Any) -> None:
        if conn.is_closed:
            conn.connect()  # without urllib3's warning: who does not verify has said so in the settings


def _watched(connection: Any, watch: Attempt) -> Any:
    is_stale = watch.is_fresh or not watch.may_use(connection.zone)
    if (before := getattr(connection, "watch", None)) is not None:
        before.sock = None  # an abort of the request before must not reach this one
        # What lies between may have forgotten a connection that was idle for long, and tell nobody.
        is_stale = is_stale or time.monotonic() - before.used_at > MAX_IDLE_S
    if is_stale:
        connection.close()
    connection.watch = watch
    if not connection.is_closed:
        watch.is_reused, watch.stage, watch.zone = True, Stage.ANSWER, connection.zone
    return connection


@attrs.frozen
class UpstreamRequest:
    """One request. `who` names the server in messages; `registry_zone` is the zone of the registry.

    `may_repeat`: it may be sent once more when the connection breaks. A POST is sent once in any case.
    """

    who: str
    method: str
    place: Url
    headers: Mapping[str, str] = attrs.field(repr=False)
    deadline: float | None
    registry_zone: NetworkZone | None = None
    body: bytes | None = attrs.field(default=None, repr=False)
    may_repeat: bool = True


class UpstreamResponse:
    """Status and headers of a response, and its body while it comes. Whoever has it ends it: `finish` or `close`."""

    def __init__(self, request: UpstreamRequest, response: urllib3.BaseHTTPResponse, watch: Attempt) -> None:
        self.who = request.who
        self.place = request.place
        self.status = response.status
        self.zone = watch.zone
        self._response = response
        self._watch = watch

    def header(self, name: str) -> str | None:
        return self._response.headers.get(name)

    def header_values(self, name: str) -> list[str]:
        return self._response.headers.getlist(name)

    def lift_deadline(self) -> None:
        """From here on only a stall ends the answer."""
        self._watch.deadline = None

    def read_some(self, amount: int) -> bytes:
        """What is there, at least a byte and at most `amount`; empty at the end. Raises Fault."""
        try:
            return self._response.read1(amount, decode_content=False)
        except (failures.HTTPError, HTTPException, OSError, ValueError, AttributeError) as exc:
            self.close()
            # The headers came: whatever ails the body, the other side is there.
            raise _explain(exc, self._watch, self.who).as_not_counted() from exc

    def read(self, max_bytes: int) -> bytes:
        """The whole body. Raises Fault; also when it has more than `max_bytes` bytes."""
        pieces = []
        left = max_bytes
        while piece := self.read_some(min(left + 1, READ_BYTES)):
            left -= len(piece)
            if left < 0:
                self.close()
                raise errors.bad_response(self.who, f"sent more than {max_bytes} bytes")
            pieces.append(piece)
        return b"".join(pieces)

    def finish(self) -> None:
        """Keep the connection for the next request if little is left to read; else close it."""
        try:
            self.read(MAX_DRAINED_BYTES)
        except UpstreamError:
            self.close()

    def close(self) -> None:
        """Close the connection, unless the body was read to its end: then it is in the pool already."""
        self._response.close()
        self._response.release_conn()

    def abort(self) -> None:
        """Make a read that waits in another thread fail."""
        self._watch.abort()


class Transport:
    """The connections of one upstream: to the registry, its token service and wherever it redirects to."""

    def __init__(self, upstream: Upstream, limits: UpstreamLimits) -> None:
        # Its messages hold whole URLs, with the signatures in them.
        logging.getLogger("urllib3").setLevel(logging.CRITICAL)
        self._upstream = upstream
        self._limits = limits
        self._resolver = Resolver()
        self._pools = _pools(upstream)

    def close(self) -> None:
        self._pools.clear()

    def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send a request and wait for the headers of the answer. Raises Fault.

        A kept connection may have died unnoticed: a request that got no byte of an answer there is sent again on a
        new one, at no cost. What breaks otherwise gets one more try; time-outs get none.
        """
        self._check_literal(request)
        may_repeat = request.may_repeat and request.method != "POST"
        tries_left = 2
        is_fresh = not may_repeat
        while True:
            watch = self._watch(request, is_fresh=is_fresh)
            try:
                return UpstreamResponse(request, self._exchange(request, watch), watch)
            except (DialError, failures.HTTPError, HTTPException, OSError, ValueError) as exc:
                fault = _explain(exc, watch, request.who)
                if watch.is_reused and not fault.is_retryable:
                    self._pools.clear()  # it swallowed the request; the other idle ones may be as dead
                tries_left -= not (watch.is_reused and not watch.received_bytes)
                is_fresh = True
                if not (fault.is_retryable and may_repeat and tries_left):
                    # urllib3 puts URLs into some of its messages.
                    raise fault from (None if isinstance(exc, failures.LocationValueError) else exc)

    def _exchange(self, request: UpstreamRequest, watch: Attempt) -> urllib3.BaseHTTPResponse:
        step_s = self._limits.stall_timeout or MAX_WAIT_S
        headers = {"User-Agent": f"dockyard/{__version__}", "Accept-Encoding": "identity", **request.headers}
        response = self._pools.urlopen(
            request.method,
            request.place.url,
            body=request.body,
            headers=headers,
            timeout=urllib3.Timeout(connect=watch.left(watch.connect_s), read=watch.left(step_s)),
            pool_timeout=watch,
            retries=False,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )
        if sum(len(name) + len(value) for name, value in response.headers.items()) > MAX_HEADER_BYTES:
            response.close()
            response.release_conn()
            raise HTTPException("too many headers")
        return response

    def _watch(self, request: UpstreamRequest, *, is_fresh: bool) -> Attempt:
        return Attempt(
            resolver=self._resolver,
            connect_s=self._limits.connect_timeout or MAX_WAIT_S,
            step_s=self._limits.stall_timeout or MAX_WAIT_S,
            deadline=request.deadline,
            registry_zone=None if self._is_trusted(request.place) else request.registry_zone or NetworkZone.PUBLIC,
            is_fresh=is_fresh,
        )

    def _is_trusted(self, place: Url) -> bool:
        """The registry itself may lie anywhere, and so may what the operator lists."""
        return place.origin == self._upstream.origin or is_in_host_list(place.origin, self._upstream.trusted_hosts)

    def _check_literal(self, request: UpstreamRequest) -> None:
        """What is spelt out is judged before a lookup; behind a proxy, where names are looked up, there is no more."""
        if self._is_trusted(request.place):
            return
        zone = find_literal_zone(request.place.origin.host)
        if zone is not None and not is_zone_allowed(zone, request.registry_zone or NetworkZone.PUBLIC):
            raise errors.destination_not_allowed(request.who, "is at an address that is not allowed")


def _pools(upstream: Upstream) -> urllib3.PoolManager:
    options: dict[str, Any] = {"num_pools": MAX_POOLS, "maxsize": MAX_IDLE_CONNECTIONS, "block": False}
    pools: urllib3.PoolManager
    if upstream.proxy:
        address, login = split_proxy(upstream.proxy)
        headers = urllib3.make_headers(proxy_basic_auth=login) if login is not None else None
        pools = urllib3.ProxyManager(address, proxy_headers=headers, **options)
    else:
        pools = urllib3.PoolManager(**options)
    # Reading the system's roots takes tens of milliseconds: not before they are needed.
    context = cache(lambda: make_tls_context(upstream))

    def tls_pool(host: str, port: int, **rest: Any) -> _TLSPool:
        return _TLSPool(host, port, ssl_context=context(), **rest)

    pools.pool_classes_by_scheme = {"http": _PlainPool, "https": cast(Any, tls_pool)}
    return pools


def _explain(exc: Exception, watch: Attempt, who: str) -> UpstreamError:
    """The fault behind an exception of urllib3, http.client or the socket."""
    inner = exc.args[-1] if isinstance(exc, failures.ProtocolError) and exc.args else exc
    match inner:
        case DialError():
            return _explain_dial(inner, who)
        case failures.TimeoutError() | TimeoutError():
            return errors.timed_out(who)
    if watch.stage is Stage.TLS:
        return errors.tls_failed(who)
    if watch.stage is Stage.CONNECT:
        return errors.unreachable(who, "its proxy does not let us through")
    match inner:
        case RemoteDisconnected() | IncompleteRead():
            return errors.connection_lost(who)
        case HTTPException() | ValueError() | failures.InvalidHeader() | failures.LocationValueError():
            return errors.bad_response(who, "sent something that is not HTTP")
    return errors.connection_lost(who)


def _explain_dial(exc: DialError, who: str) -> UpstreamError:
    if exc.is_forbidden:
        return errors.destination_not_allowed(who, f"is at {exc.why}")
    if exc.is_timeout:
        return errors.timed_out(who)
    fault = errors.unreachable(who, exc.why)
    fault.is_retryable = exc.is_refused
    return fault
