"""Random input for the parsers and for the messages between workers."""

import asyncio
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dockyard.errors import RegistryError
from dockyard.workers.messages import MAX_BODY_BYTES, ErrorReply, ManifestReply, PeerReply, PeerRequest, to_error
from dockyard.workers.peers import PeerConnection, PeerReplies, PeerUnavailable, serve_connection
from tests.fuzz.budget import runs
from tests.fuzz.targets import TARGETS


def _made_of(words: list[bytes]) -> st.SearchStrategy[bytes]:
    return st.lists(st.sampled_from(words) | st.binary(max_size=3), max_size=14).map(b"".join)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=runs(200))
@given(data=st.data())
def test_parsers_with_random_input(name: str, data: st.DataObject) -> None:
    """A simple parser agrees with the result, and only the parser's own errors are raised."""
    target = TARGETS[name]
    begin = data.draw(st.sampled_from(list(target.begins)))
    target.feed(begin + data.draw(_made_of(list(target.words))))


class Sink:
    """The writing side of a stream that records what was written."""

    def __init__(self) -> None:
        self.written = b""
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    async def drain(self) -> None:
        """Return at once."""

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True


def _stream(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=1024)
    reader.feed_data(data)
    reader.feed_eof()
    return reader


FRAMES = [
    *(
        b'{"type": "TagListRequest", "repository": {"upstream": "u", "path": "p", "name": "u/p"}}\n',
        b'{"type": "Acknowledged"}\n',
        b"\n",
        b"{}",
        b"[]\n",
    ),
    *(
        b'{"type": "ManifestReply", "body_bytes": 3}\nabc',
        b'{"type": "ManifestReply", "body_bytes": -1}\n',
        b'{"type": "ManifestReply", "body_bytes": 9000000}\n',
        b'{"type": "ManifestReply", "body_bytes": true}\n',
        b'{"type": "ManifestReply", "body_bytes": 1e9}\n',
    ),
    *(
        b'{"type": "ErrorReply", "error": "UNKNOWN", "message": "x"}\n',
        b'{"type": "ErrorReply", "error": 1, "message": "x"}\n',
        b'{"type": "DownloadProgress", "size_bytes": 5, "released_bytes": 5, "inode": 1, "is_complete": true}\n',
        b"\xff",
        b"\0",
        b"x" * 2000,
        b'{"a":' * 300,
    ),
    *(
        b'{"type": "ErrorReply", "error": "BlobUnknown", "message": []}\n',
        b'{"type": "ErrorReply", "error": "Denied", "message": "", "retry_after_s": "x"}\n',
    ),
]


@settings(max_examples=runs(200))
@given(_made_of(FRAMES))
def test_f7_messages_between_workers(data: bytes) -> None:
    """Only a complete request is handled, replies are messages, and no body is longer than its limit."""
    asyncio.run(_exchange(data))


async def _exchange(data: bytes) -> None:
    received: list[PeerRequest] = []

    async def handle(request: PeerRequest, connection: PeerConnection) -> None:
        received.append(request)
        await connection.send(ManifestReply(b"body", "a/b"))

    sink = Sink()
    await serve_connection(_stream(data), cast(asyncio.StreamWriter, sink), handle)
    assert sink.is_closed
    assert len(received) <= 1
    for request in received:
        assert isinstance(request, PeerRequest)
        assert type(request).__name__.encode() in data.partition(b"\n")[0]
    responses = PeerReplies(_stream(data))
    try:
        while True:
            response = await responses.next()
            assert isinstance(response, PeerReply | PeerRequest)
            assert len(getattr(response, "body", b"")) <= MAX_BODY_BYTES
            if isinstance(response, ErrorReply):
                error = to_error(response)
                assert isinstance(error, RegistryError)
                assert 400 <= error.status < 600
    except PeerUnavailable:
        return
