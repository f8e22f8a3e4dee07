"""The edge: what Granian and Falcon leave to us.

Before Falcon: requests that no handler should see are refused (two Host headers, an undecidable path, a method that a
read-only cache does not have), and the path that is routed is the one on the wire, not a decoded one. After it, each
request is counted and gets its line in the log.
"""

import re
from collections.abc import Collection

import structlog

from dockyard.cache.threads import Threads
from dockyard.errors import NameInvalid, RegistryError, RequestInvalid, Unsupported
from dockyard.web.connections import Connections
from dockyard.web.errors import error_response
from dockyard.web.exchange import App, Exchange, Receive, Scope, Send

MAX_PATH_BYTES = 2048
MAX_HEADER_BYTES = 16 * 1024
_METHODS = {"GET", "HEAD"}
_PLAIN_PATH = re.compile(rb"(?:/[A-Za-z0-9._~!$&'()*+,;=:@-]*)+")
_COLON = re.compile(rb"%3[Aa]")

log = structlog.get_logger("dockyard.request")


class HeadersTooLarge(RequestInvalid):
    """More header bytes than any registry client sends."""

    status = 431


class PathTooLong(RequestInvalid):
    """A path longer than any name and digest make it."""

    status = 414


class Edge:
    """The ASGI application that Granian calls.

    `threads` reads files for it. `level` is the log level of request lines, None for no lines; paths in `ignore_paths`
    get none.
    """

    def __init__(
        self,
        app: App,
        threads: Threads,
        level: str | None,
        ignore_paths: Collection[str],
        *,
        log_requests: bool,
        log_responses: bool,
    ) -> None:
        self._app = app
        self._threads = threads
        self._connections = Connections()
        self._level = level
        self._ignore_paths = frozenset(ignore_paths)
        self._log_requests = log_requests
        self._log_responses = log_responses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the life span."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["http_version"] == "1":
            scope["http_version"] = "1.0"  # Granian's spelling; Falcon knows 1.0 only
        exchange = Exchange(scope, receive, send, self._threads, self._connections, keeps_body=self._log_responses)
        scope["dockyard"] = exchange
        if self._log_requests:
            await exchange.note_request_body()
        try:
            _check(scope)
            scope["path"] = _COLON.sub(b":", scope["raw_path"]).decode("ascii")
        except RegistryError as exc:
            await _refuse(exchange, exc)
        else:
            await exchange.run(self._app)
        exchange.count()
        if self._level and scope["path"] not in self._ignore_paths:
            getattr(log, self._level)("request", **exchange.describe())


def _check(scope: Scope) -> None:
    """Refuse what no handler should see. Raises RegistryError."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    hosts = [value for name, value in headers if name == b"host"]  # Granian makes up an empty one
    if len(hosts) > 1 or (not any(hosts) and scope["http_version"] != "1.0"):
        raise RequestInvalid("a request needs exactly one Host header")
    if scope["method"] in _METHODS and any(name == b"transfer-encoding" for name, _ in headers):
        raise RequestInvalid("a GET or HEAD has no Transfer-Encoding here")  # beside a Content-Length it is an attack
    if sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
        raise HeadersTooLarge("the headers of this request are too large")
    path: bytes = scope["raw_path"]
    if len(path) > MAX_PATH_BYTES:
        raise PathTooLong("the path of this request is too long")
    plain = _COLON.sub(b":", path)
    if not _PLAIN_PATH.fullmatch(plain) or b"/../" in plain + b"/" or b"/./" in plain + b"/":
        raise NameInvalid("the path has characters that no name, tag or digest has")
    if scope["method"] not in _METHODS:
        raise Unsupported("this registry is a read-only cache: only GET and HEAD are supported")


async def _refuse(exchange: Exchange, error: RegistryError) -> None:
    status, headers, body = error_response(error)
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    raw.append((b"connection", b"close"))
    await exchange.send({"type": "http.response.start", "status": status, "headers": raw})
    await exchange.send({"type": "http.response.body", "body": body})
