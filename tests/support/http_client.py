"""HTTP clients over raw sockets: they report exactly what was on the wire.

`send_request` sends one request and reads the whole response. `StreamedResponse` is a response that is read step by
step. `Crowd` downloads one body with hundreds of clients in one thread, compares each byte, and keeps nothing.
"""

import json
import re
import selectors
import socket
import ssl
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

import attrs

from tests.support.bodies import PIECE_BYTES, Body
from tests.support.busy_machine import EVENT_TIMEOUT_S

READ_BYTES = 256 * 1024

Ended = Literal["length", "fin", "rst", "timeout"]


@attrs.frozen
class Response:
    """A response as it arrived. `ended` is "length" when the body is complete, else how the connection ended."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes = attrs.field(repr=False)
    ended: Ended
    took_s: float

    def header(self, name: str) -> str | None:
        """The value of a header; several values are joined with a comma."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        return ", ".join(values) if values else None

    @property
    def is_complete(self) -> bool:
        """Whether a client would accept this body as complete."""
        return self.ended == "length"

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The code of an OCI error body, after its form was checked."""
        assert self.header("Content-Type") == "application/json", self
        assert len(self.body) <= 4096
        assert self.header("WWW-Authenticate") is None
        (error,) = self.json["errors"]
        assert set(error) <= {"code", "message", "detail"}
        return str(error["code"])


class StreamedResponse:
    """One request whose response the test reads as far as it wants."""

    def __init__(
        self,
        address: tuple[str, int],
        path: str,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        tls: ssl.SSLContext | None = None,
        receive_buffer: int | None = None,
        timeout_s: float = EVENT_TIMEOUT_S,
        request: bytes | None = None,
    ) -> None:
        self._method = method
        self._buffer = b""
        self.received = 0
        self.began_at = time.monotonic()
        self.socket: socket.socket = _connect(address, timeout_s, receive_buffer)
        try:
            if tls is not None:
                self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")
            self.socket.sendall(request or request_bytes(method, path, address, headers or {}))
        except OSError:
            self.socket.close()
            raise
        self.status = 0
        self.headers: tuple[tuple[str, str], ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def head(self) -> "StreamedResponse":
        """Read status and headers."""
        while b"\r\n\r\n" not in self._buffer:
            more = self.socket.recv(READ_BYTES)
            if not more:
                raise ConnectionError(f"no response but {self._buffer!r}")
            self._buffer += more
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        self.status, self.headers = parse_head(head)
        return self

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def length(self) -> int | None:
        """The number of body bytes that the response announces; None without Content-Length."""
        if self._method == "HEAD" or self.status in (204, 304):
            return 0
        length = self.header("Content-Length")
        return None if length is None else int(length)

    def read(self, amount: int) -> bytes:
        """Read exactly `amount` body bytes, or fewer when the body ends before."""
        parts = []
        while amount > 0:
            part = self._buffer[:amount] if self._buffer else self.socket.recv(min(amount, READ_BYTES))
            self._buffer = self._buffer[len(part) :]
            if not part:
                break
            parts.append(part)
            amount -= len(part)
            self.received += len(part)
        return b"".join(parts)

    def rest(self) -> tuple[bytes, Ended]:
        """Read the rest of the body; return it and how it ended."""
        parts: list[bytes] = []
        left = None if self.length is None else self.length - self.received
        try:
            while left is None or left > 0:
                part = self.read(READ_BYTES if left is None else min(left, READ_BYTES))
                if not part:
                    return b"".join(parts), "fin"
                parts.append(part)
                left = None if left is None else left - len(part)
        except TimeoutError:
            return b"".join(parts), "timeout"
        except (ConnectionResetError, BrokenPipeError):
            return b"".join(parts), "rst"
        return b"".join(parts), "length"

    def find_mismatch(self, expected: Body) -> int | None:
        """Read the rest of the body without keeping it; return the offset of the first piece that differs, or None."""
        place = bytearray(PIECE_BYTES)
        for piece in expected.pieces(self.received, expected.size):
            if self._buffer or len(piece) < PIECE_BYTES:
                is_right = self.read(len(piece)) == piece
            else:
                is_right = self._fill(place) and place == piece
                self.received += len(piece)
            if not is_right:
                return self.received - len(piece)
        return None

    def _fill(self, place: bytearray) -> bool:
        view, filled = memoryview(place), 0
        while filled < len(place):
            got = self.socket.recv_into(view[filled:])
            if not got:
                return False
            filled += got
        return True

    def reset(self) -> None:
        """Close the connection with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def send_request(
    address: tuple[str, int],
    path: str,
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "GET",
    tls: ssl.SSLContext | None = None,
    timeout_s: float = EVENT_TIMEOUT_S,
) -> Response:
    """Send one request on a new connection and read the whole response."""
    with StreamedResponse(address, path, headers, method=method, tls=tls, timeout_s=timeout_s) as download:
        download.head()
        body, ended = download.rest()
        if (download.header("Transfer-Encoding") or "").lower() == "chunked":
            body, ended = _unchunked(body)
        return Response(download.status, download.headers, body, ended, time.monotonic() - download.began_at)


def send_raw(address: tuple[str, int], data: bytes, timeout_s: float = 5.0) -> bytes:
    """Send raw bytes and return what comes back until the server closes, has sent a whole response, or times out."""
    with _connect(address, timeout_s, None) as connection:
        connection.sendall(data)
        received = b""
        try:
            while more := connection.recv(READ_BYTES):
                received += more
                if _is_whole(received):
                    break
        except (TimeoutError, ConnectionResetError):
            pass
        return received


@attrs.define(eq=False)
class Member:
    """One client of a crowd: when its first byte came, how many bytes came, and whether one was wrong."""

    offset: int
    socket: socket.socket
    head: bytes = b""
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    error: bytes = b""  # the body of an error response
    length: int = -1
    received: int = 0
    first_byte_at: float | None = None
    ended: str = ""
    ended_at: float | None = None
    wrong_at: int | None = None

    @property
    def is_right(self) -> bool:
        return self.ended == "length" and self.wrong_at is None


class Crowd:
    """Many downloads of one body at once, read by the thread that calls `run`."""

    def __init__(
        self, address: tuple[str, int], path: str, expected: Body, size: int, headers: Sequence[Mapping[str, str]] = ()
    ) -> None:
        self._address = address
        self._expected = expected
        self._bytes = b"".join(expected.pieces(0, expected.size)) if expected.size <= 256 * 1024 * 1024 else None
        self._selector = selectors.DefaultSelector()
        self.members: list[Member] = []
        for number in range(size):
            self._join(path, headers[number] if headers else {})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.socket.close()
        self._selector.close()

    def run(self, until: Callable[[], bool] | None = None, within_s: float = EVENT_TIMEOUT_S) -> None:
        """Read for all clients until the condition holds, or until every download has ended."""
        deadline = time.monotonic() + within_s
        while any(not member.ended for member in self.members):
            if until is not None and until():
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"the crowd is not served within {within_s} s: {self.summary()}")
            for key, _ in self._selector.select(0.05):
                self._read(key.data)
        if until is not None and not until():
            raise AssertionError(f"all downloads have ended before what we wait for: {self.summary()}")

    def summary(self) -> str:
        """The number of clients for each status and end, for messages."""
        ends: dict[str, int] = {}
        for member in self.members:
            word = f"{member.status} {member.ended or 'running'}{' WRONG' if member.wrong_at is not None else ''}"
            ends[word] = ends.get(word, 0) + 1
        return str(ends)

    def _join(self, path: str, headers: Mapping[str, str]) -> None:
        connection = _connect(self._address, EVENT_TIMEOUT_S, None)
        connection.sendall(request_bytes("GET", path, self._address, headers))
        connection.setblocking(False)
        match = re.match(r"bytes=(\d+)-", headers.get("Range", ""))
        member = Member(int(match.group(1)) if match else 0, connection)
        self.members.append(member)
        self._selector.register(connection, selectors.EVENT_READ, member)

    def _read(self, member: Member) -> None:
        try:
            data = member.socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            self._end(member, "rst")
            return
        if not data:
            self._end(member, "fin")
            return
        if not member.status:
            member.head += data
            if b"\r\n\r\n" not in member.head:
                return
            head, _, data = member.head.partition(b"\r\n\r\n")
            member.status, member.headers = parse_head(head)
            member.length = int({name.lower(): value for name, value in member.headers}.get("content-length", "-1"))
        if data:
            self._take(member, data)
        if member.received == member.length:
            self._end(member, "length")

    def _take(self, member: Member, data: bytes) -> None:
        if member.first_byte_at is None:
            member.first_byte_at = time.monotonic()
        at = member.offset + member.received
        if member.status >= 400:
            member.error += data
        if member.status in (200, 206) and member.wrong_at is None and not self._is_right(at, data):
            member.wrong_at = at
        member.received += len(data)

    def _is_right(self, at: int, data: bytes) -> bool:
        if self._bytes is not None:
            return self._bytes.startswith(data, at)
        return is_part_of(self._expected, at, data)

    def _end(self, member: Member, how: str) -> None:
        member.ended = how
        member.ended_at = time.monotonic()
        self._selector.unregister(member.socket)


def is_part_of(expected: Body, at: int, data: bytes) -> bool:
    """Whether these are the bytes of the body from `at` on."""
    place = 0
    for piece in expected.pieces(at, at + len(data)):
        if not data.startswith(piece, place):
            return False
        place += len(piece)
    return place == len(data)


def request_bytes(method: str, path: str, address: tuple[str, int], headers: Mapping[str, str]) -> bytes:
    """A request as it is sent; a Host header in `headers` replaces the default one."""
    fields = dict(headers) if any(name.lower() == "host" for name in headers) else _with_host(address, headers)
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode()


def parse_head(head: bytes) -> tuple[int, tuple[tuple[str, str], ...]]:
    """Parse the status and headers of a response."""
    line, *fields = head.decode("latin-1").split("\r\n")
    headers = tuple((name, value.strip()) for name, _, value in (field.partition(":") for field in fields))
    return int(line.split(" ")[1]), headers


def parse_multipart(response: Response) -> list[tuple[str, bytes]]:
    """Parse a multipart/byteranges body: the Content-Range and the bytes of each part, in order."""
    match = re.fullmatch(r'multipart/byteranges; *boundary="?([^"]+)"?', response.header("Content-Type") or "")
    assert match, response.header("Content-Type")
    delimiter = b"--" + match.group(1).encode()
    first, *parts, last = (b"\r\n" + response.body).split(b"\r\n" + delimiter)
    assert first.strip() == b""  # a line break before the first delimiter is a legal, empty preamble
    assert last.strip() == b"--"
    found = []
    for part in parts:
        head, _, body = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        named = {name.lower(): value for name, value in fields.items()}
        assert named["content-type"] == "application/octet-stream"
        found.append((named["content-range"], body))
    return found


def _with_host(address: tuple[str, int], headers: Mapping[str, str]) -> dict[str, str]:
    return {"Host": f"{address[0]}:{address[1]}", **headers}


def _connect(address: tuple[str, int], timeout_s: float, receive_buffer: int | None) -> socket.socket:
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(timeout_s)
    try:
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


def _unchunked(data: bytes) -> tuple[bytes, Ended]:
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            return body, "length"
        body, data = body + data[:length], data[length + 2 :]
    return body, "fin"


def _is_whole(data: bytes) -> bool:
    """Whether this is one response with its whole body (for servers that keep the connection open)."""
    head, found, body = data.partition(b"\r\n\r\n")
    match = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return bool(found) and match is not None and len(body) >= int(match.group(1))
