"""One request and its answer: what the log and the counters tell of it, and how its bytes reach the client.

Granian shows the application neither that a client has left nor that it reads nothing. Both are watched for here while
a body is sent, and end the request. A blob that can go to the client without being copied goes past Granian.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import structlog

from dockyard import metrics
from dockyard.cache.threads import Threads
from dockyard.errors import RegistryError
from dockyard.oci.ranges import ByteRange
from dockyard.web.bodies import BlobBody
from dockyard.web.connections import Connections, Patience, shut_down, traffic
from dockyard.web.zero_copy import SMALLEST_BYTES, DirectAnswer, Stalled, response_head

CLIENT_TIMEOUT_S = 60.0
MAX_UNREAD_BYTES = 16 * 1024
MAX_LOGGED_BODY_BYTES = 2048
_NO_SNIFFING = (b"x-content-type-options", b"nosniff")

Scope = dict[str, Any]
Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = structlog.get_logger("dockyard.request")


class Exchange:
    """One request and its answer: what was asked, how it was answered, what was sent.

    Handlers note `kind`, `name`, `reference` and `how` for the log and the counters, and the `body` that they stream.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        threads: Threads,
        connections: Connections,
        *,
        keeps_body: bool,
    ) -> None:
        self.kind = "other"
        self.name = ""
        self.reference = ""
        self.how = ""
        self.body: BlobBody | None = None
        self.status = 0
        self.sent_bytes = 0
        self.end = ""
        self._scope = scope
        self._receive = receive
        self._send = send
        self._threads = threads
        self._connections = connections
        self._started = time.perf_counter()
        self._watchers: list[asyncio.Task[None]] = []
        self._is_waiting = False
        self._is_answered = False
        self._keeps_body = keeps_body
        self._request_body = ""
        self._response_body = b""

    async def run(self, app: App) -> None:
        """Call the application. However the body ends, the connection tells the client: nothing more need be raised."""
        try:
            await app(self._scope, self._first_event, self.send)
        except asyncio.CancelledError:
            if not self.end:
                raise
            task = asyncio.current_task()
            if task:
                task.uncancel()
        except RegistryError as exc:
            self.end = f"cut: {exc.message}"
        except Exception:
            self.end = "cut: a fault of our own"
            log.exception("a body ended in a fault of our own", path=self._scope["path"])
        finally:
            for watcher in self._watchers:
                watcher.cancel()

    async def send(self, event: Event) -> None:
        """Send an event of the answer."""
        if self._is_answered:
            return
        if event["type"] == "http.response.start":
            self.status = event["status"]
            headers = [*event["headers"], _NO_SNIFFING]
            if self.body and (part := self.body.only_range) and (connection := self._take_connection(part)):
                await self._send_directly(connection, headers, self.body, part)
                return
            await self._send(event | {"headers": headers})
            return
        body = event.get("body", b"")
        if not event.get("more_body"):
            if self._keeps_body and not self._watchers:
                self._response_body = bytes(body[:MAX_LOGGED_BODY_BYTES])
            self.sent_bytes += len(body)
            await self._send(event)
            return
        if not self._watchers:
            request = asyncio.current_task()
            self._watchers = [asyncio.create_task(watch(request)) for watch in (self._watch, self._watch_reading)]
        self._is_waiting = True
        await self._send(event)
        self._is_waiting = False
        self.sent_bytes += len(body)
        await asyncio.sleep(0)  # Granian's send seldom waits: let the watchers and the others have their turn

    def _take_connection(self, part: ByteRange) -> socket.socket | None:
        """The connection to send a blob over, if that is worth it, nothing was ever sent there, and nothing is unread.

        A connection that is closed with a body unread is reset, and the client may lose what was sent to it.
        """
        if self._scope["scheme"] != "http" or part.length < SMALLEST_BYTES or self._has_request_body:
            return None
        connection = self._connections.find(self._scope)
        if connection and not ((seen := traffic(connection)) and seen.is_none):
            connection.close()
            return None
        return connection

    async def _send_directly(
        self, connection: socket.socket, headers: Iterable[tuple[bytes, bytes]], body: BlobBody, part: ByteRange
    ) -> None:
        """Send the whole answer past Granian, and close the connection."""
        answer = DirectAnswer(connection, body.reader, part, self._threads, CLIENT_TIMEOUT_S)
        body.skip()
        with connection:
            try:
                await answer.send(response_head(self.status, headers))
            except OSError:
                self.end = "client left"
            except Stalled:
                self.end = "client stalled"
            except RegistryError as exc:
                self.end = f"cut: {exc.message}"
            finally:
                self.sent_bytes = answer.sent_bytes
                self._connections.forget(self._scope)
                shut_down(connection)
        self._is_answered = True
        await self._send({"type": "http.response.start", "status": self.status, "headers": []})
        await self._send({"type": "http.response.body", "body": b""})  # to nobody: the connection is shut

    @property
    def _has_request_body(self) -> bool:
        return any(name in {b"content-length", b"transfer-encoding"} for name, _ in self._scope["headers"])

    async def note_request_body(self) -> None:
        """Keep the beginning of the request's body for the log. Waits for it at most a second."""
        if not self._has_request_body:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                event = await self._receive()
                self._request_body = event.get("body", b"")[:MAX_LOGGED_BODY_BYTES].decode("utf-8", "replace")

    def count(self) -> None:
        """Count the request, once it is over."""
        metrics.count_request(self.kind, self.status, self.how, time.perf_counter() - self._started, self.sent_bytes)
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
        while unread <= MAX_UNREAD_BYTES:
            event = await self._receive()
            if event["type"] == "http.disconnect":
                self._give_up(request, "client left")
                return
            unread += len(event.get("body", b""))

    async def _watch_reading(self, request: asyncio.Task[Any] | None) -> None:
        """End the request and the connection when the client reads nothing: Granian would keep both."""
        patience = Patience(CLIENT_TIMEOUT_S)
        while True:
            await asyncio.sleep(patience.look_every_s)
            if not self._is_waiting or (connection := self._connections.find(self._scope)) is None:
                continue
            with connection:
                if patience.is_over(connection):
                    self._give_up(request, "client stalled")
                    shut_down(connection)
                    return

    def _give_up(self, request: asyncio.Task[Any] | None, end: str) -> None:
        self.end = end
        if request:
            request.cancel()
