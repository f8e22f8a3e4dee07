"""Watching a client while a response is streamed to it.

Granian's `send` reports neither that the client has disconnected nor that it reads nothing. Two tasks check for both
and cancel the request.

Many clients close the connection as soon as they have received Content-Length bytes, before the application has sent
the end of the body. That is no early end: a request whose last byte was passed to Granian is not cancelled.
"""

import asyncio
from typing import Any

from dockyard.web.asgi import Receive, Scope
from dockyard.web.connections import Connections, StallDetector, shut_down
from dockyard.web.request_record import CLIENT_STALLED, RequestRecord

MAX_UNREAD_BYTES = 16 * 1024


class ClientMonitor:
    """Cancels the task that creates it when the client disconnects or stalls, and sets the record's `end` before.

    `body_bytes` is the length of the whole body, None when it is unknown; the record's `sent_bytes` counts up to it.
    Set `is_sending` while the response waits for the client. Call `stop` when the response has ended.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        connections: Connections,
        record: RequestRecord,
        body_bytes: int | None,
    ) -> None:
        self.is_sending = False
        self._body_bytes = body_bytes
        self._scope = scope
        self._receive = receive
        self._connections = connections
        self._record = record
        self._request: asyncio.Task[Any] | None = asyncio.current_task()
        self._tasks = [asyncio.create_task(self._watch_disconnect()), asyncio.create_task(self._watch_reading())]

    def stop(self) -> None:
        """Stop both tasks."""
        for task in self._tasks:
            task.cancel()

    async def _watch_disconnect(self) -> None:
        unread = 0
        while unread <= MAX_UNREAD_BYTES:  # a client that sends more without reading is left to the stall detector
            event = await self._receive()
            if event["type"] == "http.disconnect":
                await asyncio.sleep(0)  # a `send` that has ended may not have been counted yet
                if not self._is_body_sent:
                    self._record.set_client_left()
                    self._cancel_request()
                return
            unread += len(event.get("body", b""))

    async def _watch_reading(self) -> None:
        """Detect a client that reads nothing, and close its connection: Granian would keep it open."""
        detector = StallDetector()
        while True:
            await asyncio.sleep(detector.check_every_s)
            if not self.is_sending or (connection := self._connections.find(self._scope)) is None:
                continue
            with connection:
                if detector.is_stalled(connection):
                    self._record.end = CLIENT_STALLED
                    self._cancel_request()
                    shut_down(connection)
                    return

    @property
    def _is_body_sent(self) -> bool:
        return self._body_bytes is not None and self._record.sent_bytes >= self._body_bytes

    def _cancel_request(self) -> None:
        if self._request:
            self._request.cancel()
