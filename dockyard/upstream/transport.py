"""HTTP to one upstream with urllib3: pooled connections, one request, one response, certificates and proxies.

urllib3 keeps the connections and implements HTTP. It follows no redirect, retries nothing, decodes nothing, and sends
the headers that it is given. Its connections are opened and read by `dialer.py`, so that each wait observes the
deadline of its request and each address is checked. Its exceptions are mapped to `UpstreamError` here.
"""

import logging
import ssl
import time
from collections.abc import Mapping
from contextvars import ContextVar
from http.client import HTTPException, IncompleteRead, RemoteDisconnected
from typing import Any
from urllib.parse import unquote, urlsplit

import attrs
import urllib3
from urllib3 import exceptions as urllib3_errors
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from dockyard import __version__
from dockyard.config.settings import Upstream, UpstreamLimits
from dockyard.http1.connections import StrictConnection, StrictPool, use_strict_pools
from dockyard.http1.encoding import TooLong, parse_encoding, unpack
from dockyard.http1.response import InvalidResponse, ResponseReader
from dockyard.http1.tls import describe_failure, make_tls_context
from dockyard.upstream import errors
from dockyard.upstream.dialer import Attempt, DialError, Resolver, Stage
from dockyard.upstream.errors import UpstreamError
from dockyard.upstream.network_zones import NetworkZone, find_literal_zone, is_zone_allowed
from dockyard.upstream.urls import Url, is_in_host_list

MAX_POOLS = 16
MAX_IDLE_CONNECTIONS = 64
MAX_IDLE_S = 60.0
MAX_WAIT_S = 3600.0
MAX_DRAINED_BYTES = 64 * 1024
READ_BYTES = 64 * 1024

# The attempt that the current thread runs. urllib3 takes a connection from a pool, and opens it, inside `urlopen`,
# which has no parameter for such an object: `Transport._urlopen` sets the variable around that call, and the pools
# below read it and attach the attempt to the connection.
_current_attempt: ContextVar[Attempt] = ContextVar("current_attempt")


@attrs.frozen
class UpstreamRequest:
    """One HTTP request. `server` is how messages name the server.

    `registry_zone` is the zone of the registry that referred to this URL. `may_repeat`: the request may be sent again
    when the connection is lost; a POST is never sent again.
    """

    server: str
    method: str
    url: Url
    headers: Mapping[str, str] = attrs.field(repr=False)
    deadline: float | None
    registry_zone: NetworkZone | None = None
    body: bytes | None = attrs.field(default=None, repr=False)
    may_repeat: bool = True


class UpstreamResponse:
    """Status and headers of a response, and its body while it arrives. To be ended by `finish` or `close`."""

    def __init__(self, request: UpstreamRequest, response: urllib3.BaseHTTPResponse, attempt: Attempt) -> None:
        self.server = request.server
        self.url = request.url
        self.status = response.status
        self.zone = attempt.zone
        self.drained: bytes | None = None  # by `finish`; None before, and if it was too much
        self._response = response
        self._attempt = attempt

    def header(self, name: str) -> str | None:
        return self._response.headers.get(name)

    def header_values(self, name: str) -> list[str]:
        return self._response.headers.getlist(name)

    @property
    def encoding(self) -> str:
        """The Content-Encoding that the server declares; empty for none."""
        return parse_encoding(", ".join(self.header_values("Content-Encoding")))

    def lift_deadline(self) -> None:
        """From now on only a stall ends the response."""
        self._attempt.deadline = None

    def read_some(self, max_bytes: int) -> bytes:
        """The bytes that have arrived, at least one; empty at the end of the body. Raises UpstreamError."""
        try:
            return self._response.read1(max_bytes, decode_content=False)
        except (urllib3_errors.HTTPError, HTTPException, OSError, ValueError, AttributeError) as exc:
            self.close()
            # The headers arrived: a failing body does not mean that the server is down.
            raise _map_exception(exc, self._attempt, self.server).as_not_counted() from exc

    def read(self, max_bytes: int) -> bytes:
        """The whole body, unpacked if it is encoded. Raises UpstreamError, also when it has more than `max_bytes`."""
        try:
            return unpack(self._read_raw(max_bytes), self.encoding, max_bytes)
        except TooLong as exc:
            raise errors.bad_response(self.server, f"sent {exc}") from exc

    def _read_raw(self, max_bytes: int) -> bytes:
        pieces = []
        remaining = max_bytes
        while piece := self.read_some(min(remaining + 1, READ_BYTES)):
            remaining -= len(piece)
            if remaining < 0:
                self.close()
                raise errors.bad_response(self.server, f"sent more than {max_bytes} bytes")
            pieces.append(piece)
        return b"".join(pieces)

    def finish(self) -> None:
        """Read what is left (`drained`) and keep the connection for the next request; close it if that is too much."""
        try:
            self.drained = self.read(MAX_DRAINED_BYTES)
        except UpstreamError:
            self.close()

    def close(self) -> None:
        """Close the connection, unless the body was read to its end: then it is in the pool already."""
        self._response.close()
        self._response.release_conn()

    def abort(self) -> None:
        """Make a read that waits in another thread fail."""
        self._attempt.abort()


class Transport:
    """The connections of one upstream: to the registry, its token service and its redirect targets."""

    def __init__(self, upstream: Upstream, limits: UpstreamLimits) -> None:
        # urllib3 logs whole URLs, which may contain signatures.
        logging.getLogger("urllib3").setLevel(logging.CRITICAL)
        self._upstream = upstream
        self._limits = limits
        self._resolver = Resolver()
        self._pools = _make_pools(upstream)

    def close(self) -> None:
        self._pools.clear()

    def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send a request and wait for the headers of the response. Raises UpstreamError.

        A pooled connection may be dead, or have received what belongs to no request: a request that failed there is
        sent again on a new connection, and does not count as an attempt if it received no byte. Otherwise a lost
        connection allows one more attempt, a timeout none.
        """
        self._check_literal_address(request)
        may_repeat = request.may_repeat and request.method != "POST"
        attempts_left = 2
        needs_new_connection = not may_repeat
        while True:
            attempt = self._start_attempt(request, needs_new_connection=needs_new_connection)
            try:
                response = UpstreamResponse(request, self._urlopen(request, attempt), attempt)
            except (DialError, urllib3_errors.HTTPError, HTTPException, OSError, ValueError) as exc:
                error = _map_exception(exc, attempt, request.server)
                if attempt.is_reused and not error.is_retryable:
                    self._pools.clear()  # after a network change all idle connections are dead
                attempts_left -= not (attempt.is_reused and not attempt.received_bytes)
                needs_new_connection = True
                is_retryable = error.is_retryable or (attempt.is_reused and _is_invalid_response(exc))
                if not (is_retryable and may_repeat and attempts_left):
                    # urllib3 puts URLs into some of its messages.
                    raise error from (None if isinstance(exc, urllib3_errors.LocationValueError) else exc)
                continue
            # Some servers send 408 before they close an idle connection: it is not the response to this request.
            if response.status != 408 or not attempt.is_reused or not may_repeat:
                return response
            response.close()
            needs_new_connection = True

    def _urlopen(self, request: UpstreamRequest, attempt: Attempt) -> urllib3.BaseHTTPResponse:
        url = request.url
        is_forwarded = self._upstream.proxy and url.origin.scheme == "http"  # not through a tunnel
        read_timeout_s = self._limits.stall_timeout or MAX_WAIT_S
        headers = {"User-Agent": f"dockyard/{__version__}", "Accept-Encoding": "identity", **request.headers}
        timeout = urllib3.Timeout(
            connect=attempt.remaining_s(attempt.connect_timeout_s), read=attempt.remaining_s(read_timeout_s)
        )
        token = _current_attempt.set(attempt)
        try:
            return self._pools.urlopen(
                request.method,
                f"{url.origin}/",
                target=url.text if is_forwarded else url.target,
                body=request.body,
                headers=headers,
                timeout=timeout,
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        finally:
            _current_attempt.reset(token)

    def _start_attempt(self, request: UpstreamRequest, *, needs_new_connection: bool) -> Attempt:
        is_trusted = self._is_trusted(request.url)
        return Attempt(
            resolver=self._resolver,
            connect_timeout_s=self._limits.connect_timeout or MAX_WAIT_S,
            stall_timeout_s=self._limits.stall_timeout or MAX_WAIT_S,
            deadline=request.deadline,
            registry_zone=None if is_trusted else request.registry_zone or NetworkZone.PUBLIC,
            needs_new_connection=needs_new_connection,
        )

    def _is_trusted(self, url: Url) -> bool:
        """Whether any address is allowed: for the registry itself and for `trusted_hosts`."""
        return url.origin == self._upstream.origin or is_in_host_list(url.origin, self._upstream.trusted_hosts)

    def _check_literal_address(self, request: UpstreamRequest) -> None:
        """Check an address in the URL before any lookup. With a proxy, which resolves names, it is the only check."""
        if self._is_trusted(request.url):
            return
        zone = find_literal_zone(request.url.origin.host)
        if zone is not None and not is_zone_allowed(zone, request.registry_zone or NetworkZone.PUBLIC):
            raise _address_not_allowed(request.server)


# Connections


class _AttemptConnection(StrictConnection):
    """A connection that is opened and read within the limits of an attempt."""

    attempt: Attempt
    zone: NetworkZone = NetworkZone.PUBLIC
    proxy: Any
    port: int
    first_stage = Stage.RESPONSE  # after the connection was opened
    _dns_host: str

    def _new_conn(self) -> Any:
        is_proxy = self.proxy is not None
        sock, zone = self.attempt.connect(self._dns_host, self.port, is_proxy=is_proxy)
        self.zone = self.attempt.zone = NetworkZone.PUBLIC if is_proxy else zone
        self.attempt.stage = self.first_stage
        return sock

    def make_reader(self, sock: Any) -> ResponseReader:
        return self.attempt.make_reader(sock)


class _PlainConnection(_AttemptConnection, HTTPConnection):  # type: ignore[misc]
    pass


class _TLSConnection(_AttemptConnection, HTTPSConnection):  # type: ignore[misc]
    first_stage = Stage.TLS

    def connect(self) -> None:
        super().connect()
        self.attempt.stage = Stage.RESPONSE

    def _tunnel(self) -> None:
        self.attempt.stage = Stage.CONNECT
        super()._tunnel()
        self.attempt.stage = Stage.TLS


class _AttemptPool(StrictPool):
    def _get_conn(self, timeout: float | None = None) -> Any:
        return _attach(super()._get_conn(timeout), _current_attempt.get())


class _PlainPool(_AttemptPool, HTTPConnectionPool):  # type: ignore[misc]
    ConnectionCls = _PlainConnection


class _TLSPool(_AttemptPool, HTTPSConnectionPool):  # type: ignore[misc]
    ConnectionCls = _TLSConnection

    def _validate_conn(self, conn: Any) -> None:
        if conn.is_closed:
            conn.connect()  # without urllib3's warning about `insecure_skip_verify`, which the operator has set


def _attach(connection: Any, attempt: Attempt) -> Any:
    """Use a connection from a pool for an attempt; close it first if it must not be reused."""
    must_reconnect = attempt.needs_new_connection or not attempt.may_connect_to(connection.zone)
    if (previous := getattr(connection, "attempt", None)) is not None:
        previous.sock = None  # an abort of the previous request must not affect this one
        # Firewalls and NAT drop connections that were idle for long without notice.
        must_reconnect = must_reconnect or time.monotonic() - previous.last_received_at > MAX_IDLE_S
    if must_reconnect:
        connection.close()
    connection.attempt = attempt
    if not connection.is_closed:
        attempt.is_reused, attempt.stage, attempt.zone = True, Stage.RESPONSE, connection.zone
    return connection


def _make_pools(upstream: Upstream) -> urllib3.PoolManager:
    options: dict[str, Any] = {"num_pools": MAX_POOLS, "maxsize": MAX_IDLE_CONNECTIONS, "block": False}
    pools: urllib3.PoolManager
    if upstream.proxy:
        address, login = _split_proxy(upstream.proxy)
        headers = urllib3.make_headers(proxy_basic_auth=login) if login is not None else None
        pools = urllib3.ProxyManager(address, proxy_headers=headers, **options)
    else:
        pools = urllib3.PoolManager(**options)
    use_strict_pools(pools, _PlainPool, _TLSPool, lambda: _make_tls_context(upstream))
    return pools


def _make_tls_context(upstream: Upstream) -> ssl.SSLContext:
    """The system's root certificates, plus `ca_file`: a private registry may redirect to a public host.

    `insecure_skip_verify` applies to all hosts of the upstream. Raises DialError.
    """
    try:
        context = make_tls_context(upstream.ca_file or None)
    except OSError as exc:
        raise DialError("its ca_file cannot be loaded") from exc
    if upstream.insecure_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _split_proxy(url: str) -> tuple[str, str | None]:
    """The URL of a proxy without userinfo, and its `user:password`, None if it has none."""
    parts = urlsplit(url)
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    if parts.username is None:
        return address, None
    return address, f"{unquote(parts.username)}:{unquote(parts.password or '')}"


# Errors


def _map_exception(exc: Exception, attempt: Attempt, server: str) -> UpstreamError:
    """The UpstreamError for an exception of urllib3, http.client or the socket."""
    inner = _unwrap(exc)
    match inner:
        case DialError() if not inner.is_timeout:
            return _map_dial_error(inner, server)
        case DialError() | urllib3_errors.TimeoutError() | TimeoutError():
            # A deadline that passed while connecting says little: most of the time went elsewhere.
            is_connecting = attempt.stage is not Stage.RESPONSE and not attempt.is_past_deadline
            return errors.connect_timed_out(server) if is_connecting else errors.timed_out(server)
    if attempt.stage is Stage.TLS:
        return errors.tls_failed(server, describe_failure(exc))
    if attempt.stage is Stage.CONNECT:
        return errors.unreachable(server, "the proxy rejects the request")
    match inner:
        case RemoteDisconnected() | IncompleteRead():
            return errors.connection_lost(server)
        case HTTPException() | ValueError() | urllib3_errors.InvalidHeader() | urllib3_errors.LocationValueError():
            return errors.bad_response(server, "sent a response that is not valid HTTP")
    return errors.connection_lost(server)


def _unwrap(exc: Exception) -> Exception:
    inner = exc.args[-1] if isinstance(exc, urllib3_errors.ProtocolError) and exc.args else exc
    return inner if isinstance(inner, Exception) else exc


def _is_invalid_response(exc: Exception) -> bool:
    return isinstance(_unwrap(exc), InvalidResponse)


def _map_dial_error(exc: DialError, server: str) -> UpstreamError:
    if exc.is_forbidden:
        return _address_not_allowed(server)
    error = errors.unreachable(server, exc.reason)
    error.is_retryable = exc.is_refused
    return error


def _address_not_allowed(server: str) -> UpstreamError:
    return errors.destination_not_allowed(server, "has an address that is not allowed for redirects and token services")
