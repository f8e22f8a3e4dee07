"""Sending the events of one response to Granian: recorded, and watched while a body is streamed."""

import asyncio
import socket
from collections.abc import Sequence
from http import HTTPStatus

import structlog

from dockyard.errors import RegistryError
from dockyard.web.asgi import App, Event, Receive, Scope, Send
from dockyard.web.client_monitor import ClientMonitor
from dockyard.web.connections import Connections, count_acknowledged, limit_unsent, read_acknowledged
from dockyard.web.headers import NO_SNIFFING
from dockyard.web.request_record import INTERNAL_ERROR, MAX_LOGGED_BODY_BYTES, RequestRecord

log = structlog.get_logger("dockyard.request")


class ResponseSender:
    """Runs an ASGI application for one request and passes its events to Granian.

    `keeps_body` keeps the beginning of a body that is neither streamed nor a blob in the record, for the log.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        record: RequestRecord,
        connections: Connections,
        *,
        keeps_body: bool,
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._record = record
        self._connections = connections
        self._keeps_body = keeps_body
        self._monitor: ClientMonitor | None = None
        self._open_range: _OpenRange | None = None
        self._headers: Sequence[tuple[bytes, bytes]] = ()

    async def run(self, app: App) -> None:
        """Call the application until the response has ended.

        After the headers were sent, an error can only end the connection before the announced length; Granian does
        that when the application returns. The reason goes into the record.
        """
        try:
            await app(self._scope, self._receive if self._scope["method"] == "POST" else _receive_empty_body, self.send)
        except asyncio.CancelledError:
            if not self._record.end:
                raise
            if task := asyncio.current_task():  # cancelled by the monitor
                task.uncancel()
        except RegistryError as exc:
            self._record.cut(exc)
        except Exception:
            self._record.cut(RegistryError(INTERNAL_ERROR))
            log.exception("internal error while sending a response", path=self._scope["path"])
        finally:
            if self._monitor:
                self._monitor.stop()
            if self._open_range:
                self._open_range.end(self._record)

    async def send(self, event: Event) -> None:
        """Pass on one event of the response. Starts the monitor with the first chunk of a streamed body."""
        if event["type"] == "http.response.start":
            self._record.status = event["status"]
            self._headers = event["headers"]
            await self._send(event | {"headers": [*event["headers"], NO_SNIFFING]})
            return
        body = event.get("body", b"")
        if not event.get("more_body"):
            if self._keeps_body and not self._monitor and not self._is_blob:
                self._record.response_body = bytes(body[:MAX_LOGGED_BODY_BYTES])
            self._record.sent_bytes += len(body)
            await self._send(event)
            return
        if not self._monitor:
            self._monitor = ClientMonitor(
                self._scope, self._receive, self._connections, self._record, _find_length(self._headers)
            )
            if self._record.has_open_range:
                self._open_range = _OpenRange(self._connections.find(self._scope))
        self._monitor.is_sending = True
        await self._send(event)
        self._monitor.is_sending = False
        self._record.sent_bytes += len(body)
        await asyncio.sleep(0)  # Granian's send seldom waits; let the monitor and other requests run

    @property
    def _is_blob(self) -> bool:
        """Whether the body is a blob, not the error of a request for one."""
        return self._record.kind == "blob" and self._record.status < HTTPStatus.BAD_REQUEST


class _OpenRange:
    """The connection of a response that the client may end at any byte: little is written ahead of it."""

    def __init__(self, connection: socket.socket | None) -> None:
        self._connection = connection
        self._acknowledged_before = 0
        if connection:
            limit_unsent(connection)
            self._acknowledged_before = read_acknowledged(connection) or 0

    def end(self, record: RequestRecord) -> None:
        """Correct the number of bytes of a client that has left: Granian takes chunks of a body also after that."""
        if not self._connection:
            return
        with self._connection:
            if record.end:
                record.sent_bytes = count_acknowledged(self._connection, record.sent_bytes, self._acknowledged_before)


def _find_length(headers: Sequence[tuple[bytes, bytes]]) -> int | None:
    """The Content-Length; None without one."""
    return next((int(value) for name, value in headers if name == b"content-length"), None)


async def _receive_empty_body() -> Event:
    """What the application receives: bodies of requests are never read, but for those of POST."""
    return {"type": "http.request", "body": b"", "more_body": False}
