"""HTTP to one upstream with urllib3: pooled connections, one request, one response, certificates and proxies.

urllib3 keeps the connections and implements HTTP. It follows no redirect, retries nothing, decodes nothing, and sends
the headers that it is given. Its connections are opened and read by `dialer.py`, so that each wait observes the
deadline of its request and each address is checked. Its exceptions are mapped to `UpstreamError` here.
"""

import logging
import re
import ssl
import time
from collections.abc import Mapping
from contextvars import ContextVar
from http import HTTPStatus
from http.client import HTTPException, IncompleteRead, RemoteDisconnected
from typing import Any
from urllib.parse import unquote, urlsplit

import attrs
import structlog
import urllib3
from urllib3 import exceptions as urllib3_errors
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from dockyard import __version__
from dockyard.config.settings import Upstream, UpstreamLimits
from dockyard.errors import FailureDetails
from dockyard.http1.connections import StrictConnection, StrictPool, use_strict_pools
from dockyard.http1.encoding import TooLong, parse_encoding, unpack
from dockyard.http1.response import InvalidResponse, ResponseReader, TLSResponse
from dockyard.http1.tls import (
    TLSProblem,
    describe_certificate,
    explain_failure,
    find_tls_error,
    make_tls_context,
    make_unverified_context,
)
from dockyard.log import is_debug
from dockyard.oci.cdn_loop import HEADER, format_passed
from dockyard.oci.origin import DEFAULT_PORTS, join_host_port
from dockyard.upstream import errors
from dockyard.upstream.cures import closed_cure, connection_cure, status_cure, timeout_cure, tls_cure
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

_TUNNEL_FAILED = re.compile(r"Tunnel connection failed: ([0-9]{3})\b")

log = structlog.get_logger()

# The attempt that the current thread runs. urllib3 takes a connection from a pool, and opens it, inside `urlopen`,
# which has no parameter for such an object: `Transport._urlopen` sets the variable around that call, and the pools
# below read it and attach the attempt to the connection.
_current_attempt: ContextVar[Attempt] = ContextVar("current_attempt")


@attrs.frozen
class UpstreamRequest:
    """One HTTP request. `server` is how messages name the server.

    `registry_zone` is the zone of the registry that referred to this URL. `may_repeat`: the request may be sent again
    when the connection is lost; a POST is never sent again. `passed` are the servers that the request has passed for
    which this one is sent; None: CDN-Loop is not sent.
    """

    server: str
    method: str
    url: Url
    headers: Mapping[str, str] = attrs.field(repr=False)
    deadline: float | None
    registry_zone: NetworkZone | None = None
    body: bytes | None = attrs.field(default=None, repr=False)
    may_repeat: bool = True
    passed: tuple[str, ...] | None = ()


class UpstreamResponse:
    """Status and headers of a response, and its body while it arrives. To be ended by `finish` or `close`."""

    def __init__(
        self,
        request: UpstreamRequest,
        response: urllib3.BaseHTTPResponse,
        attempt: Attempt,
        failures: "_FailureMapper",
    ) -> None:
        self.server = request.server
        self.url = request.url
        self._request = request
        self._failures = failures
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

    @property
    def details(self) -> FailureDetails:
        """What the log says about this response if it is an error, or leads to one."""
        return self._failures.details_of_status(self.status, self._request)

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
            raise self._failures.map(exc, self._attempt, self._request).as_not_counted() from exc

    def read(self, max_bytes: int) -> bytes:
        """The whole body, unpacked if it is encoded. Raises UpstreamError, also when it has more than `max_bytes`."""
        try:
            return unpack(self._read_raw(max_bytes), self.encoding, max_bytes)
        except TooLong as exc:
            raise errors.bad_response(self.server, f"sent {exc}", self.details) from exc

    def _read_raw(self, max_bytes: int) -> bytes:
        pieces = []
        remaining = max_bytes
        while piece := self.read_some(min(remaining + 1, READ_BYTES)):
            remaining -= len(piece)
            if remaining < 0:
                self.close()
                raise errors.bad_response(self.server, f"sent more than {max_bytes} bytes", self.details)
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
    """The connections of one upstream: to the registry, its token service and its redirect targets.

    `server_name` is that of this server (`oci.cdn_loop`); empty: its requests do not lead to loops.
    """

    def __init__(self, upstream: Upstream, limits: UpstreamLimits, server_name: str = "") -> None:
        # urllib3 logs whole URLs, which may contain signatures.
        logging.getLogger("urllib3").setLevel(logging.CRITICAL)
        self._upstream = upstream
        self._limits = limits
        self._server_name = server_name
        self._resolver = Resolver()
        self._failures = _FailureMapper(upstream)
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
        number = 0
        while True:
            number += 1
            attempt = self._start_attempt(request, needs_new_connection=needs_new_connection)
            try:
                response = UpstreamResponse(request, self._urlopen(request, attempt), attempt, self._failures)
            except (DialError, urllib3_errors.HTTPError, HTTPException, OSError, ValueError) as exc:
                error = self._failures.map(exc, attempt, request)
                if is_debug():
                    self._log_request(request, attempt, number, **error.error.log_fields())
                if attempt.is_reused and not error.is_retryable:
                    self._pools.clear()  # after a network change all idle connections are dead
                attempts_left -= not (attempt.is_reused and not attempt.received_bytes)
                needs_new_connection = True
                is_retryable = error.is_retryable or (attempt.is_reused and _is_invalid_response(exc))
                if not (is_retryable and may_repeat and attempts_left):
                    # urllib3 puts URLs into some of its messages, http.client what a proxy writes.
                    is_secret = isinstance(exc, urllib3_errors.LocationValueError) or attempt.stage is Stage.TUNNEL
                    raise error from (None if is_secret else exc)
                continue
            if is_debug():
                self._log_request(request, attempt, number, status=response.status)
            # Some servers send 408 before they close an idle connection: it is not the response to this request.
            if response.status != 408 or not attempt.is_reused or not may_repeat:
                return response
            response.close()
            needs_new_connection = True

    def _log_request(self, request: UpstreamRequest, attempt: Attempt, number: int, **result: object) -> None:
        """One debug line for an attempt, without what may contain a signature: the query, the path at other hosts."""
        fields = {
            "upstream": self._upstream.prefix,
            "method": request.method,
            "host": request.url.origin.host_and_port,
            **({"path": request.url.target.partition("?")[0]} if self._is_trusted(request.url) else {}),
            "seconds": round(time.monotonic() - attempt.started_at, 4),
            "attempt": number,
            "is_reused": attempt.is_reused,
        }
        log.debug("request to an upstream", **fields | result)

    def _urlopen(self, request: UpstreamRequest, attempt: Attempt) -> urllib3.BaseHTTPResponse:
        url = request.url
        is_forwarded = self._upstream.proxy and url.origin.scheme == "http"  # not through a tunnel
        read_timeout_s = self._limits.stall_timeout or MAX_WAIT_S
        headers = {"User-Agent": f"dockyard/{__version__}", "Accept-Encoding": "identity", **request.headers}
        if self._server_name and request.passed is not None:
            headers[HEADER] = format_passed(request.passed, self._server_name)
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
            raise self._failures.address_not_allowed(request, f"not allowed: {request.url.origin.host}")


# Connections


class _AttemptConnection(StrictConnection):
    """A connection that is opened and read within the limits of an attempt."""

    attempt: Attempt
    zone: NetworkZone = NetworkZone.PUBLIC
    proxy: Any
    port: int
    _dns_host: str

    def _new_conn(self) -> Any:
        is_proxy = self.proxy is not None
        sock, zone = self.attempt.connect(self._dns_host, self.port, is_proxy=is_proxy)
        self.zone = self.attempt.zone = NetworkZone.PUBLIC if is_proxy else zone
        if is_debug():
            address, seconds = sock.getpeername()[0], round(time.monotonic() - self.attempt.started_at, 4)
            log.debug(
                "connected",
                host=join_host_port(self._dns_host, self.port),
                address=address,
                is_proxy=is_proxy,
                seconds=seconds,
            )
        self.attempt.stage = self.stage_after_connect
        return sock

    @property
    def stage_after_connect(self) -> Stage:
        return Stage.RESPONSE

    def make_reader(self, sock: Any) -> ResponseReader:
        return self.attempt.make_reader(sock)


class _PlainConnection(_AttemptConnection, HTTPConnection):  # type: ignore[misc]
    pass


class _TLSConnection(_AttemptConnection, HTTPSConnection):  # type: ignore[misc]
    ssl_context: Any
    cert_reqs: Any
    _tunnel_host: Any
    _tunnel_port: Any
    _tunnel_headers: Any
    _tunnel_scheme: Any

    @property
    def stage_after_connect(self) -> Stage:
        is_proxy_with_tls = self.proxy is not None and self.proxy.scheme == "https"
        return Stage.PROXY_TLS if is_proxy_with_tls else Stage.TLS

    def connect(self) -> None:
        tunnel = (self._tunnel_host, self._tunnel_port, self._tunnel_headers, self._tunnel_scheme)
        try:
            super().connect()
        except ssl.SSLCertVerificationError:
            if self.attempt.stage is Stage.TLS:
                self._look_at_certificate(tunnel)
            raise
        self.attempt.stage = Stage.RESPONSE
        if is_debug():
            log.debug(
                "TLS connection",
                host=join_host_port(tunnel[0] or self.host, tunnel[1] or self.port),
                tls=self.sock.version(),
            )

    def _look_at_certificate(self, tunnel: tuple[Any, ...]) -> None:
        """Describe the certificate that was not trusted, for the log. Python tells it only without verification.

        That is a second connection, on which nothing is sent. It fails without consequences.
        """
        trusted = self.ssl_context, self.cert_reqs
        try:
            self.close()
            if tunnel[0] is not None:
                self.set_tunnel(*tunnel)
            self.ssl_context, self.cert_reqs = make_unverified_context(), ssl.CERT_NONE
            super().connect()
            self.attempt.certificate = describe_certificate(self.sock)
        except (DialError, urllib3_errors.HTTPError, HTTPException, OSError, ValueError) as exc:
            self.attempt.certificate = f"the certificate cannot be read again: {type(exc).__name__}"
        finally:
            self.close()
            self.ssl_context, self.cert_reqs = trusted
            self.attempt.stage = Stage.TLS

    def _tunnel(self) -> None:
        self.attempt.stage = Stage.TUNNEL
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
        # Also the certificates of the system, if SSL_CERT_FILE names a file.
        error = f"{upstream.ca_file or 'the certificates of the system'}: {exc}"
        raise DialError("its ca_file cannot be loaded", error) from exc
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


class _FailureMapper:
    """Makes the UpstreamError for an exception of urllib3, http.client or the socket, for one upstream."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._proxy = _proxy_authority(upstream.proxy) if upstream.proxy else ""

    def map(self, exc: Exception, attempt: Attempt, request: UpstreamRequest) -> UpstreamError:
        """The error of a request that failed."""
        server, stage = request.server, attempt.stage
        inner = _unwrap(exc)
        match inner:
            case DialError() if not inner.is_timeout:
                return self._map_dial_error(inner, attempt, request)
            case DialError() | urllib3_errors.TimeoutError() | TimeoutError():
                details = self._details(attempt, request, _describe_timeout(inner, attempt))
                # A deadline that passed while connecting says little: most of the time went elsewhere.
                if stage is Stage.RESPONSE or attempt.is_past_deadline:
                    setting = "upstream.stall_timeout" if attempt.deadline is None else "upstream.check_timeout"
                    return errors.timed_out(server, details.with_cure(timeout_cure(setting, request.url.origin)))
                cure = (
                    f"{self._connection_cure(attempt, request)}; if it is only slow, raise `upstream.connect_timeout`"
                )
                peer = self._name_of_peer(attempt, request)
                return errors.connect_timed_out(peer, details.with_cure(cure), what=_WAITS[stage])
        if stage in (Stage.TLS, Stage.PROXY_TLS):
            return self._map_tls_error(exc, attempt, request)
        details = self._details(attempt, request, _describe(exc, attempt))
        if stage is Stage.TUNNEL:
            reason = self._explain_refused_tunnel(exc)
            cure = "" if "`" in reason else self._connection_cure(attempt, request)
            return errors.unreachable(server, reason, details.with_cure(cure))
        if (found := find_tls_error(exc)) is not None and "ALERT" in (found.reason or ""):
            return self._map_tls_error(exc, attempt, request)  # with TLS 1.3, an alert may come after the handshake
        match inner:
            case TLSResponse():
                return errors.bad_response(server, f"requires TLS{self._use_https(request)}", details)
            case RemoteDisconnected() | IncompleteRead():
                return self._connection_lost(details, attempt, request)
            case HTTPException() | ValueError() | urllib3_errors.InvalidHeader() | urllib3_errors.LocationValueError():
                cure = self._status_cure(0, request)
                return errors.bad_response(server, "sent a response that is not valid HTTP", details.with_cure(cure))
        return self._connection_lost(details, attempt, request)

    def address_not_allowed(self, request: UpstreamRequest, error: str) -> UpstreamError:
        """The error for an address that a registry may not refer to."""
        details = FailureDetails(request.url.origin.host_and_port, error, Stage.CONNECT.value)
        problem = "has an address that is not allowed for redirects and token services"
        return errors.destination_not_allowed(request.server, problem, details)

    def details_of_status(self, status: int, request: UpstreamRequest) -> FailureDetails:
        """The details of a response. Without a tunnel, a proxy may have made it."""
        error = describe_status(status)
        if self._proxy and status == 407:
            return FailureDetails(self._proxy, error, Stage.TUNNEL.value)
        if self._proxy:
            error += f" (through the proxy {self._proxy})"
        cure = self._status_cure(status, request)
        return FailureDetails(request.url.origin.host_and_port, error, Stage.RESPONSE.value, cure=cure)

    def _status_cure(self, status: int, request: UpstreamRequest) -> str:
        origin = request.url.origin
        return status_cure(status, origin, self._upstream.prefix, is_registry=origin == self._upstream.origin)

    def _details(self, attempt: Attempt, request: UpstreamRequest, error: str) -> FailureDetails:
        host = self._proxy if self._is_at_proxy(attempt) else request.url.origin.host_and_port
        if self._proxy and host != self._proxy:
            error = f"{error} (through the proxy {self._proxy})"
        return FailureDetails(host, error, attempt.stage.value)

    def _is_at_proxy(self, attempt: Attempt) -> bool:
        return bool(self._proxy) and attempt.stage not in (Stage.TLS, Stage.RESPONSE)

    def _name_of_peer(self, attempt: Attempt, request: UpstreamRequest) -> str:
        return f"the proxy of {request.server}" if self._is_at_proxy(attempt) else request.server

    def _map_dial_error(self, exc: DialError, attempt: Attempt, request: UpstreamRequest) -> UpstreamError:
        if exc.is_forbidden:
            return self.address_not_allowed(request, exc.error)
        reason = f"the proxy cannot be reached: {exc.reason}" if self._is_at_proxy(attempt) else exc.reason
        details = self._details(attempt, request, exc.error).with_cure(self._connection_cure(attempt, request))
        error = errors.unreachable(request.server, reason, details)
        error.is_retryable = exc.is_refused
        return error

    def _connection_cure(self, attempt: Attempt, request: UpstreamRequest) -> str:
        origin = request.url.origin
        return connection_cure(
            attempt.stage,
            origin,
            self._upstream.prefix,
            is_proxy=self._is_at_proxy(attempt),
            is_registry=origin == self._upstream.origin,
        )

    def _connection_lost(self, details: FailureDetails, attempt: Attempt, request: UpstreamRequest) -> UpstreamError:
        hint = self._hint_of_silence(attempt, request)
        cure = "" if hint else closed_cure(request.url.origin)
        return errors.connection_lost(request.server, details.with_cure(cure), hint=hint)

    def _map_tls_error(self, exc: Exception, attempt: Attempt, request: UpstreamRequest) -> UpstreamError:
        failure = explain_failure(exc)
        error = "; ".join(text for text in (failure.error, attempt.certificate) if text)
        if failure.problem is TLSProblem.OTHER_NAME:
            error += f"; requested: {request.url.origin.host}"
        details = self._details(attempt, request, error)
        cure = tls_cure(
            failure.problem,
            self._upstream.prefix,
            is_proxy=self._is_at_proxy(attempt),
            is_registry=request.url.origin == self._upstream.origin,
        )
        if not cure:
            peer = details.host
            details = details.with_cure(f"see what it supports with `openssl s_client -connect {peer}`, and update it")
        reason = f"{failure.reason}: {cure}" if cure else failure.reason
        return errors.tls_failed(self._name_of_peer(attempt, request), reason, details)

    def _use_https(self, request: UpstreamRequest) -> str:
        is_registry = request.url.origin == self._upstream.origin
        return f": write `registry: https://...` for the upstream {self._upstream.prefix}" if is_registry else ""

    def _hint_of_silence(self, attempt: Attempt, request: UpstreamRequest) -> str:
        """For a registry without TLS that closes each connection without a byte."""
        is_silent = not attempt.received_bytes and not attempt.is_reused and not self._proxy
        is_plain = request.url.origin.scheme == "http" and request.url.origin == self._upstream.origin
        if not is_silent or not is_plain:
            return ""
        return f"; if it requires TLS, write `registry: https://...` for the upstream {self._upstream.prefix}"

    def _explain_refused_tunnel(self, exc: Exception) -> str:
        match _find_tunnel_status(exc):
            case 407:
                return errors.explain_proxy_login(self._upstream.prefix)
            case None:
                return "the proxy rejects the request"
            case status:
                return f"the proxy rejects the request with status {status}"


_WAITS = {
    Stage.LOOKUP: "accept a connection",
    Stage.CONNECT: "accept a connection",
    Stage.PROXY_TLS: "complete the TLS handshake",
    Stage.TUNNEL: "make a connection",
    Stage.TLS: "complete the TLS handshake",
}


def _unwrap(exc: Exception) -> Exception:
    inner = exc.args[-1] if isinstance(exc, urllib3_errors.ProtocolError) and exc.args else exc
    return inner if isinstance(inner, Exception) else exc


def _is_invalid_response(exc: Exception) -> bool:
    return isinstance(_unwrap(exc), InvalidResponse)


def _find_tunnel_status(exc: Exception) -> int | None:
    """The status of a proxy's response to CONNECT, which http.client puts into the text of an OSError."""
    for found in (exc, _unwrap(exc), *exc.args, exc.__cause__, exc.__context__):
        if match := _TUNNEL_FAILED.search(str(found)):
            return int(match[1])
    return None


def describe_status(status: int) -> str:
    """A status with its name in the standard: what a server writes there is not repeated."""
    try:
        return f"HTTP {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP {status}"


def _describe(exc: Exception, attempt: Attempt) -> str:
    """The error of the system for the log. Other texts of urllib3 may contain URLs with signatures."""
    if (status := _find_tunnel_status(exc)) is not None:
        return describe_status(status)
    for found in (_unwrap(exc), exc.__cause__, exc.__context__, *exc.args):
        match found:
            case ssl.SSLError():
                return f"OpenSSL: {found.reason or 'end of the connection'}"
            case InvalidResponse():
                return str(found)
            case OSError(errno=int()):
                return f"[Errno {found.errno}] {found.strerror}"
    inner = _unwrap(exc)
    if isinstance(inner, RemoteDisconnected | IncompleteRead):
        return f"the connection was closed after {attempt.received_bytes} bytes"
    return type(inner).__name__


def _describe_timeout(exc: Exception, attempt: Attempt) -> str:
    if isinstance(exc, DialError) and exc.error:
        return exc.error
    waited_s = time.monotonic() - attempt.started_at
    return f"timed out after {waited_s:.1f} s, {attempt.received_bytes} bytes received"


def _proxy_authority(url: str) -> str:
    """`host:port` of a proxy."""
    parts = urlsplit(_split_proxy(url)[0])
    return join_host_port(parts.hostname or "", parts.port or DEFAULT_PORTS[parts.scheme])
