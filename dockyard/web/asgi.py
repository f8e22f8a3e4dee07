"""The edge: what Granian and Falcon leave to us.

Before Falcon: requests that no handler should see are refused (two Host headers, an undecidable path, a method that a
read-only cache does not have), and the path that is routed is the one on the wire, not a decoded one. Around Falcon:
a client that leaves ends its request, one that reads nothing is cut, and each request gets its line in the log.
"""

import asyncio
import contextlib
import os
import re
import socket
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import structlog

from dockyard import metrics
from dockyard.errors import NameInvalid, RegistryError, RequestInvalid, Unsupported
from dockyard.web.errors import error_response

CLIENT_TIMEOUT_S = 60.0
MAX_PATH_BYTES = 2048
MAX_HEADER_BYTES = 16 * 1024
MAX_LOGGED_BODY_BYTES = 2048
_METHODS = {"GET", "HEAD"}
_PLAIN_PATH = re.compile(rb"(?:/[A-Za-z0-9._~!$&'()*+,;=:@-]*)+")
_NO_SNIFFING = (b"x-content-type-options", b"nosniff")
_COLON = re.compile(rb"%3[Aa]")

Scope = dict[str, Any]
Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = structlog.get_logger("dockyard.request")


class HeadersTooLarge(RequestInvalid):
    """More header bytes than any registry client sends."""

    status = 431


class PathTooLong(RequestInvalid):
    """A path longer than any name and digest make it."""

    status = 414


class ClientStalled(Exception):
    """The client has read nothing for CLIENT_TIMEOUT_S."""


class Edge:
    """The ASGI application that Granian calls.

    `level` is the log level of request lines, None for no lines; paths in `ignore_paths` get none.
    """

    def __init__(
        self, app: App, level: str | None, ignore_paths: Collection[str], *, log_requests: bool, log_responses: bool
    ) -> None:
        self._app = app
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
        exchange = Exchange(scope, receive, send, keeps_body=self._log_responses)
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


class Exchange:
    """One request and its answer: what was asked, how it was answered, what was sent.

    Handlers note the `kind`, `name`, `reference` and `how` for the log and the counters.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, keeps_body: bool) -> None:
        self.kind = "other"
        self.name = ""
        self.reference = ""
        self.how = ""
        self.status = 0
        self.sent_bytes = 0
        self.end = ""
        self._scope = scope
        self._receive = receive
        self._send = send
        self._started = time.perf_counter()
        self._watcher: asyncio.Task[None] | None = None
        self._is_gone = False
        self._keeps_body = keeps_body
        self._request_body = ""
        self._response_body = b""

    async def run(self, app: App) -> None:
        """Call the application. However the body ends, the connection tells the client: nothing more need be raised."""
        try:
            await app(self._scope, self._first_event, self.send)
        except asyncio.CancelledError:
            if not self._is_gone:
                raise
            task = asyncio.current_task()
            if task:
                task.uncancel()
            self.end = "client left"
        except ClientStalled:
            self.end = "client stalled"
            _shut_down(self._scope["client"])
        except RegistryError as exc:
            self.end = f"cut: {exc.message}"
        except Exception:
            self.end = "cut: a fault of our own"
            log.exception("a body ended in a fault of our own", path=self._scope["path"])
        finally:
            if self._watcher:
                self._watcher.cancel()

    async def send(self, event: Event) -> None:
        """Send an event of the answer. Raises ClientStalled."""
        if event["type"] == "http.response.start":
            self.status = event["status"]
            await self._send(event | {"headers": [*event["headers"], _NO_SNIFFING]})
            return
        body = event.get("body", b"")
        if not event.get("more_body"):
            if self._keeps_body and not self._watcher:
                self._response_body = bytes(body[:MAX_LOGGED_BODY_BYTES])
            self.sent_bytes += len(body)
            await self._send(event)
            return
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch(asyncio.current_task()))
        try:
            async with asyncio.timeout(CLIENT_TIMEOUT_S):
                await self._send(event)
        except TimeoutError as exc:
            raise ClientStalled from exc
        self.sent_bytes += len(body)
        await asyncio.sleep(0)  # Granian's send seldom waits: let the watcher and the others have their turn

    async def note_request_body(self) -> None:
        """Keep the beginning of the request's body for the log. Waits for it at most a second."""
        headers = dict(self._scope["headers"])
        if b"content-length" not in headers and b"transfer-encoding" not in headers:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                event = await self._receive()
                self._request_body = event.get("body", b"")[:MAX_LOGGED_BODY_BYTES].decode("utf-8", "replace")

    def count(self) -> None:
        """Count the request, once it is over."""
        metrics.requests.labels(self.kind, str(self.status), self.how).inc()
        metrics.request_seconds.labels(self.kind).observe(time.perf_counter() - self._started)
        metrics.sent_bytes.labels(self.kind).inc(self.sent_bytes)
        if self.end:
            metrics.cut_responses.labels(self.end.partition(":")[0]).inc()

    def describe(self) -> dict[str, object]:
        """The fields of the request's line in the log."""
        fields: dict[str, object] = {
            "method": self._scope["method"],
            "path": "" if self.name else self._scope["path"],
            "name": self.name,
            "reference": self.reference,
            "status": self.status,
            "how": self.how,
            "bytes": self.sent_bytes,
            "seconds": round(time.perf_counter() - self._started, 4),
            "client": self._scope["client"][0].removeprefix("::ffff:"),
            "end": self.end,
            "request_body": self._request_body,
            "response_body": self._response_body.decode("utf-8", "replace"),
        }
        return {key: value for key, value in fields.items() if value != ""}

    async def _first_event(self) -> Event:
        return {"type": "http.request", "body": b"", "more_body": False}  # bodies are never read

    async def _watch(self, request: asyncio.Task[Any] | None) -> None:
        """End the request when its client leaves. Granian's `send` would not tell."""
        unread = 0
        while unread <= MAX_HEADER_BYTES:
            event = await self._receive()
            if event["type"] == "http.disconnect":
                self._is_gone = True
                if request:
                    request.cancel()
                return
            unread += len(event.get("body", b""))


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


def _shut_down(peer: tuple[str, str]) -> None:
    """Close the connection to a client under Granian, which would keep it for as long as the client does."""
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError, ValueError):
            if not os.readlink(f"/proc/self/fd/{entry}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry))) as connection:
                host, port = connection.getpeername()[:2]
                if (host, str(port)) == (peer[0], str(peer[1])):
                    connection.shutdown(socket.SHUT_RDWR)
                    return
