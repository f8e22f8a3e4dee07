"""Responses: interim ones, heads, framing, and what comes after the end."""

import socket
from collections.abc import Iterator
from http.client import HTTPException, IncompleteRead, RemoteDisconnected

import pytest

from dockyard.http1 import response as response_module
from dockyard.http1.response import Idle, InvalidResponse, ResponseReader, StrictResponse

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection."""
    ours, theirs = socket.socketpair()
    ours.settimeout(5.0)
    with ours, theirs:
        yield ours, theirs


Sockets = tuple[socket.socket, socket.socket]


def receive(
    sockets: Sockets, data: bytes, method: str = "GET", *, is_ended: bool = False
) -> tuple[StrictResponse, bytes]:
    """Send some bytes to a client; the response that it reads, with its body."""
    ours, theirs = sockets
    theirs.sendall(data)
    if is_ended:
        theirs.shutdown(socket.SHUT_WR)
    response = StrictResponse(ResponseReader(ours), method=method)
    response.begin()
    body = b""
    while piece := response.read1(3):
        body += piece
    response.close()
    return response, body


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (OK, b"hello"),
        (b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 200 OK\nContent-Length:5\n\nhello", b"hello"),
        (b"HTTP/1.1 200 OK\r\nX:\r\ncontent-length: \t 5 \r\n\r\nhello", b"hello"),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"hello"),
        (b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\n" * 50 + OK, b"hello"),
        (CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (CHUNKED + b"0002;name=value\r\nhe\r\n3 \r\nllo\r\n00\r\n\r\n", b"hello"),
        (CHUNKED + b"5\r\nhello\r\n0\r\nTrailer: x\r\nOther: y\r\n\r\n", b"hello"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", b""),
        (b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", b""),
    ],
)
def test_a_response_with_a_clear_end_leaves_the_connection_usable(sockets: Sockets, data: bytes, body: bytes) -> None:
    """Lengths, chunks, trailers, statuses without a body, and 100 before it."""
    response, received = receive(sockets, data)
    assert received == body
    assert not response.will_close
    assert response.is_over


@pytest.mark.parametrize("head", [OK[:-5], CHUNKED, b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 9\r\n\r\n"])
def test_a_response_to_head_has_no_body(sockets: Sockets, head: bytes) -> None:
    """Whatever its headers announce."""
    response, received = receive(sockets, head, "HEAD")
    assert (received, response.is_over) == (b"", not response.will_close)


@pytest.mark.parametrize("status", [102, 103, 110, 199])
@pytest.mark.parametrize("count", [1, 3, 200])
@pytest.mark.parametrize("headers", [b"", b"Link: </style.css>; rel=preload\r\nContent-Length: 7\r\n"])
def test_interim_responses_are_read_and_discarded(sockets: Sockets, status: int, count: int, headers: bytes) -> None:
    """Any number of them, with and without headers; the connection is not used again."""
    interim = b"HTTP/1.1 %d Interim\r\n%s\r\n" % (status, headers)
    response, received = receive(sockets, interim * count + OK)
    assert (response.status, received) == (200, b"hello")
    assert response.getheader("Link") is None
    assert response.will_close
    assert not response.is_over


@pytest.mark.parametrize("step", [1, 7])
def test_bytes_may_arrive_in_any_pieces(sockets: Sockets, step: int) -> None:
    """A head, an interim response and a chunk are complete when all of their bytes are here."""
    ours, theirs = sockets
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    data = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + CHUNKED + b"5\r\nhello\r\n0\r\n\r\n"

    class Piecewise(ResponseReader):
        sent = 0

        def receive(self, buffer: memoryview) -> int:
            theirs.sendall(data[self.sent : self.sent + step])
            self.sent += step
            return super().receive(buffer)

    response = StrictResponse(Piecewise(ours), method="GET")
    response.begin()
    assert (response.status, response.read()) == (200, b"hello")


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + OK,
        b"HTTP/1.1 103 Early Hints\r\nContent-Length: 3\r\n\r\nabc" + OK,
        b"HTTP/1.1 099 Odd\r\n\r\n" + OK,
        b"HTTP/1.1 20 Odd\r\n\r\n",
        b"HTTP/1.1 2000 Odd\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b'{"errors": []}\r\n\r\n',
        b"\r\n" + OK,
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nName : value\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: value\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded: first\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\rContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 101 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: %s\r\n" % (b"y" * 30_000) * 3 + b"\r\n",
        *(
            b"HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\nhello" % length
            for length in (b"", b"+5", b"-5", b"0x5", b"5_0", b"5 5", b"5, 6", b"5,", b"five", b"9" * 19)
        ),
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    ],
)
def test_a_head_that_could_be_read_in_two_ways_is_invalid(sockets: Sockets, data: bytes) -> None:
    """Neither guessed nor repaired."""
    with pytest.raises(InvalidResponse):
        receive(sockets, data)


def test_interim_responses_have_limits(sockets: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
    """In number and in size."""
    monkeypatch.setattr(response_module, "MAX_INTERIM_RESPONSES", 20)
    monkeypatch.setattr(response_module, "MAX_INTERIM_BYTES", 5000)
    with pytest.raises(InvalidResponse, match="too many interim responses"):
        receive(sockets, b"HTTP/1.1 103 Early Hints\r\n\r\n" * 21)
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(InvalidResponse, match="too many bytes"):
        receive((ours, theirs), b"HTTP/1.1 103 Early Hints\r\n%s\r\n" % (b"X: y\r\n" * 200) * 10)


@pytest.mark.parametrize("size", range(1, len(OK) - 5))
def test_a_head_that_ends_early_is_no_response(sockets: Sockets, size: int) -> None:
    """Wherever the connection was closed: the request may be sent again."""
    with pytest.raises(RemoteDisconnected):
        receive(sockets, b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK[:size], is_ended=True)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length:\r\n 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nConnection: x, Close\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\nhello",
    ],
)
def test_a_response_with_a_doubtful_end_costs_its_connection(sockets: Sockets, data: bytes) -> None:
    """It is read as RFC 9112 says; its digest decides about its content."""
    response, received = receive(sockets, data, is_ended=True)
    assert received == b"hello"
    assert response.will_close
    assert not response.is_over


def test_a_doubtful_length_of_a_response_to_head_costs_its_connection(sockets: Sockets) -> None:
    """It delimits nothing, but who knows what the server sends after it."""
    response, _ = receive(sockets, b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\n", "HEAD")
    assert response.will_close


@pytest.mark.parametrize(
    "data",
    [
        OK,
        CHUNKED + b"5\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"5\r\nhello\r\n0\r\nTrailer: x\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000),
    ],
)
@pytest.mark.parametrize("extra", [OK, b"x", b"\r\n", b"0\r\n\r\n"])
def test_bytes_after_the_end_are_found(sockets: Sockets, data: bytes, extra: bytes) -> None:
    """Buffered by the reader, or still in the socket."""
    response, _ = receive(sockets, data + extra)
    assert response.end is Idle.UNEXPECTED_BYTES
    assert not response.is_over


def test_a_body_after_the_response_to_head_is_found(sockets: Sockets) -> None:
    """It is not the beginning of the next response."""
    response, received = receive(sockets, OK, "HEAD")
    assert received == b""
    assert response.end is Idle.UNEXPECTED_BYTES


@pytest.mark.parametrize(
    "data", [OK[:-1], CHUNKED + b"5\r\nhello\r\n", CHUNKED + b"5\r\nhel", CHUNKED + b"5\r\nhello\r\n0"]
)
def test_a_body_that_ends_early_is_not_over(sockets: Sockets, data: bytes) -> None:
    """urllib3 notices that a length was not reached; what ends within chunks is found here."""
    if data.startswith(CHUNKED):
        with pytest.raises(IncompleteRead):
            receive(sockets, data, is_ended=True)
        return
    response, received = receive(sockets, data, is_ended=True)
    assert (received, response.is_over) == (b"hell", False)


def test_a_body_without_the_end_of_its_trailers_is_complete(sockets: Sockets) -> None:
    """All of it is here; the connection is closed."""
    response, received = receive(sockets, CHUNKED + b"5\r\nhello\r\n0\r\nTrai", is_ended=True)
    assert (received, response.is_over) == (b"hello", False)


@pytest.mark.parametrize(
    "chunk",
    [b"+5\r\nhello\r\n", b"-5\r\n", b"0x5\r\nhello\r\n", b"5_0\r\n", b"\r\n", b" 5\r\nhello\r\n", b"5\r\nhello!\r\n"],
)
def test_a_chunk_that_could_be_read_in_two_ways_is_invalid(sockets: Sockets, chunk: bytes) -> None:
    """int() accepts signs, prefixes and underscores."""
    with pytest.raises(HTTPException):
        receive(sockets, CHUNKED + chunk + b"0\r\n\r\n")


def test_trailers_have_a_limit(sockets: Sockets) -> None:
    """They are not a body without an end."""
    with pytest.raises(InvalidResponse):
        receive(sockets, CHUNKED + b"5\r\nhello\r\n0\r\n" + b"X: %s\r\n" % (b"y" * 1000) * 20)


def test_a_response_that_is_abandoned_is_not_over(sockets: Sockets) -> None:
    """Its rest is unread."""
    ours, theirs = sockets
    theirs.sendall(OK)
    response = StrictResponse(ResponseReader(ours), method="GET")
    response.begin()
    assert response.read1(2) == b"he"
    response.close()
    assert not response.is_over
