"""Streamed responses whose client disconnects: before the last byte is sent, and after it."""

import asyncio
from typing import Any

import pytest

from dockyard.web.connections import Connections
from dockyard.web.request_record import CLIENT_LEFT, RequestRecord
from dockyard.web.response_sender import ResponseSender

SCOPE: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "client": ("::1", 1), "server": ("::1", 2)}


class Client:
    """A client that receives events, and disconnects after `chunks` chunks of the body."""

    def __init__(self, chunks: int) -> None:
        self.received: list[dict[str, Any]] = []
        self.is_gone = asyncio.Event()
        self._chunks = chunks

    async def send(self, event: dict[str, Any]) -> None:
        """What Granian does with an event of the application; it does not wait for the client."""
        self.received.append(event)
        if len(self.received) == 1 + self._chunks:
            self.is_gone.set()

    async def receive(self) -> dict[str, Any]:
        await self.is_gone.wait()
        return {"type": "http.disconnect"}


async def respond(chunks: int, headers: list[tuple[bytes, bytes]]) -> tuple[RequestRecord, Client]:
    """Send two chunks of three bytes; the client leaves after so many, and the application needs some time more."""
    client = Client(chunks)
    record = RequestRecord(SCOPE)

    async def app(_scope: object, _receive: object, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(2):
            await send({"type": "http.response.body", "body": b"abc", "more_body": True})
            for _ in range(10):
                await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b""})

    await ResponseSender(SCOPE, client.receive, client.send, record, Connections(), keeps_body=False).run(app)
    return record, client


async def test_a_client_that_leaves_after_the_last_byte() -> None:
    """It has the whole response: as most clients, it does not wait for the end of the connection."""
    record, client = await respond(2, [(b"content-length", b"6")])
    assert (record.end, record.sent_bytes) == ("", 6)
    assert client.received[-1] == {"type": "http.response.body", "body": b""}


@pytest.mark.parametrize(
    ("chunks", "headers"),
    [(1, [(b"content-length", b"6")]), (2, [(b"content-length", b"7")]), (2, [])],
    ids=["in the middle", "a byte before the end", "without a length"],
)
async def test_a_client_that_leaves_early(chunks: int, headers: list[tuple[bytes, bytes]]) -> None:
    """The application is cancelled, and the record says why."""
    record, client = await respond(chunks, headers)
    assert (record.end, record.sent_bytes) == (CLIENT_LEFT, 3 * chunks)
    assert len(client.received) == 1 + chunks


@pytest.mark.parametrize(
    ("kind", "status", "kept"), [("manifest", 200, b"abc"), ("blob", 200, b""), ("blob", 404, b"abc")]
)
async def test_the_bytes_of_a_blob_are_not_kept_for_the_log(kind: str, status: int, kept: bytes) -> None:
    """Those of a manifest are, and those of an error."""
    record = RequestRecord(SCOPE)
    record.kind = kind

    async def app(_scope: object, _receive: object, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"abc"})

    client = Client(9)
    await ResponseSender(SCOPE, client.receive, client.send, record, Connections(), keeps_body=True).run(app)
    assert record.response_body == kept
