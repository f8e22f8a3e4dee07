"""A response of HTTP/1.1, read strictly, so that no byte of it is taken for a response to another request.

`http.client` takes every 1xx response but 100 for the final one, accepts a head that ends early, ignores headers after
a malformed line, and discards what it has buffered beyond the end of a body. `StrictResponse` replaces these parts:

- Any number of interim responses (RFC 9110 section 15.2) is read before the final one, within the limits below. 101 is
  an error: no request asks for another protocol.
- A head must be complete and well-formed. A Content-Length that delimits the body must be one number.
- `will_close` is set, so that the connection is not used again, after an interim response other than 100, and when the
  end of the body could be read in two ways: Transfer-Encoding together with Content-Length, in HTTP/1.0 or with other
  codings than `chunked`; a repeated Content-Length; a folded header line.
- `is_over` tells whether the response was read to its end and nothing came after it.
"""

import fcntl
import io
import re
import ssl
import struct
import termios
from enum import Enum, auto
from http.client import HTTPException, HTTPMessage, HTTPResponse, IncompleteRead, RemoteDisconnected
from typing import Any

MAX_INTERIM_RESPONSES = 1000
MAX_INTERIM_BYTES = 256 * 1024  # of all interim responses together
MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 100
MAX_CHUNK_LINE_BYTES = 4096
MAX_TRAILER_BYTES = 16 * 1024
READ_BUFFER_BYTES = 16 * 1024

_TLS_RECORDS = (b"\x15\x03", b"\x16\x03")  # an alert, a handshake (RFC 8446 section 5.1)
_STATUS_LINE = re.compile(rb"HTTP/1\.([0-9]) +([1-9][0-9]{2})(?: (.*))?", re.DOTALL)
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*", re.DOTALL)
_LENGTH = re.compile(r"[0-9]{1,18}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?", re.DOTALL)


class InvalidResponse(HTTPException):
    """What was received is not a valid response of HTTP/1.1. The message does not quote it."""


class TLSResponse(InvalidResponse):
    """The server sent TLS in response to plain HTTP."""


class Idle(Enum):
    """The state of a connection on which nothing is expected."""

    QUIET = auto()
    CLOSED = auto()
    UNEXPECTED_BYTES = auto()


def check_idle(sock: Any) -> Idle:
    """Check a connection on which nothing is expected. Leaves the socket without a timeout, in non-blocking mode.

    A byte that is found is consumed: the connection cannot be used any more.
    """
    try:
        sock.settimeout(0.0)
        # Over TLS this also processes session tickets, which make a socket readable without being data.
        return Idle.UNEXPECTED_BYTES if sock.recv(1) else Idle.CLOSED
    except (BlockingIOError, ssl.SSLWantReadError):
        return Idle.QUIET
    except OSError:
        return Idle.CLOSED


def has_unacknowledged_bytes(sock: Any) -> bool:
    """Whether the peer has not acknowledged all bytes that were sent (tcp(7), SIOCOUTQ)."""
    try:
        (count,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))
    except OSError:
        return False  # no TCP, or a system that does not tell
    return bool(count)


class ResponseReader(io.RawIOBase):
    """The receiving side of a connection, for one response; given to http.client in place of a socket.

    With `must_be_acknowledged`, the first bytes are an error if they arrive before the peer has acknowledged the whole
    request: they cannot be a response to it.
    """

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.must_be_acknowledged = False
        self._file = sock.makefile("rb", buffering=0)  # keeps the socket open as long as it is read
        self._is_ended = False

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self, READ_BUFFER_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._is_ended:
            return None
        count = self.receive(buffer)
        if self.must_be_acknowledged:
            self.must_be_acknowledged = False
            if has_unacknowledged_bytes(self.sock):
                raise InvalidResponse("bytes before the request was received")
        return count

    def receive(self, buffer: Any) -> int:
        """Receive at least one byte; 0 at the end of the connection."""
        return self._file.readinto(buffer) or 0

    def check_end(self, buffered: io.BufferedReader) -> Idle:
        """Check, at the end of a response, whether more than that was received."""
        self._is_ended = True
        return Idle.UNEXPECTED_BYTES if buffered.peek(1) else check_idle(self.sock)

    def close(self) -> None:
        self._file.close()
        super().close()


class StrictResponse(HTTPResponse):
    """A response, see the docstring of the module. Raises InvalidResponse; RemoteDisconnected when it ends early."""

    fp: Any
    headers: Any
    length: int | None
    chunk_left: int | None
    version: int
    _method: str | None

    def __init__(self, reader: ResponseReader, *args: Any, **kwargs: Any) -> None:
        super().__init__(reader, *args, **kwargs)  # type: ignore[arg-type]
        self._reader = reader
        self._is_keep_alive_safe = True
        self._is_last_chunk_read = False
        self.end: Idle | None = None

    @property
    def is_over(self) -> bool:
        """Whether the response was read to its end, nothing came after it, and the connection is open."""
        return self.end is Idle.QUIET

    def begin(self) -> None:
        """Read interim responses and the head of the final one."""
        if self.headers is not None:
            return
        version, self.status, self.reason = self._read_status()
        self.code = self.status
        self.version = 10 if version == "HTTP/1.0" else 11
        self.headers = self.msg = self._read_header_lines(MAX_HEAD_BYTES)
        self.chunk_left = None
        self.chunked, self.length = self._find_framing()
        tokens = {token.strip().lower() for value in self._values("Connection") for token in value.split(",")}
        is_kept_alive = "close" not in tokens and (self.version == 11 or "keep-alive" in tokens)
        has_end = self.chunked or self.length is not None
        self.will_close = not (is_kept_alive and has_end and self._is_keep_alive_safe)

    def _read_status(self) -> tuple[str, int, str]:
        """The status line of the final response. Also used for the response of a proxy to CONNECT."""
        remaining = MAX_INTERIM_BYTES
        for _ in range(MAX_INTERIM_RESPONSES + 1):
            line = self._read_line(MAX_HEAD_BYTES)
            match = _STATUS_LINE.fullmatch(line)
            if match is None:
                raise (
                    TLSResponse("TLS instead of HTTP")
                    if line.startswith(_TLS_RECORDS)
                    else InvalidResponse("malformed status line")
                )
            status = int(match[2])
            if status >= 200:
                return f"HTTP/1.{match[1].decode()}", status, (match[3] or b"").decode("latin-1").strip()
            if status == 101:
                raise InvalidResponse("change of protocol that was not requested")
            self._is_keep_alive_safe &= status == 100
            remaining -= len(line)
            while header := self._read_line(MAX_HEAD_BYTES):
                remaining -= len(header)
                if remaining < 0:
                    raise InvalidResponse("too many bytes in interim responses")
        raise InvalidResponse("too many interim responses")

    def _read_header_lines(self, remaining: int) -> HTTPMessage:
        fields: list[tuple[str, str]] = []
        while line := self._read_line(remaining):
            remaining -= len(line)
            if line[:1] in b" \t":
                if not fields:
                    raise InvalidResponse("malformed header")
                self._is_keep_alive_safe = False
                name, value = fields.pop()
                fields.append((name, f"{value} {line.decode('latin-1').strip()}".strip()))
                continue
            match = _HEADER.fullmatch(line)
            if match is None:
                raise InvalidResponse("malformed header")
            fields.append((match[1].decode("latin-1"), match[2].decode("latin-1")))
            if len(fields) > MAX_HEADERS:
                raise InvalidResponse("too many headers")
        headers = HTTPMessage()
        for name, value in fields:
            headers[name] = value
        return headers

    def _read_line(self, max_bytes: int) -> bytes:
        """A line without its end; CRLF and LF end a line (RFC 9112 section 2.2)."""
        line = self.fp.readline(max_bytes + 3) if self.fp is not None else b""
        if not line.endswith(b"\n"):
            if line.startswith(_TLS_RECORDS):
                raise TLSResponse("TLS instead of HTTP")
            if len(line) > max_bytes:
                raise InvalidResponse("line or head too long")
            raise RemoteDisconnected("connection closed in the middle of a response")
        line = line[:-1].removesuffix(b"\r")
        if len(line) > max_bytes:
            raise InvalidResponse("line or head too long")
        if b"\r" in line or b"\0" in line:
            raise InvalidResponse("control character in a head")
        return line

    def _values(self, name: str) -> list[str]:
        return list(self.headers.get_all(name, []))

    def _find_framing(self) -> tuple[bool, int | None]:
        """Whether the body is chunked, and its length; (False, None): it ends with the connection.

        RFC 9112 section 6.3.
        """
        codings = [value.strip().lower() for value in self._values("Transfer-Encoding")]
        lengths = [part.strip() for value in self._values("Content-Length") for part in value.split(",")]
        if len(lengths) > 1 or (codings and (lengths or codings != ["chunked"] or self.version == 10)):
            self._is_keep_alive_safe = False
        if len(set(lengths)) > 1:
            raise InvalidResponse("two different lengths")
        is_length_valid = all(_LENGTH.fullmatch(length) for length in lengths)
        if self._method == "HEAD" or self.status in {204, 304}:
            self._is_keep_alive_safe &= is_length_valid
            return False, 0
        if codings:
            return codings == ["chunked"], None
        if not is_length_valid:
            raise InvalidResponse("invalid Content-Length")
        return False, int(lengths[0]) if lengths else None

    # The body. http.client calls these methods.

    def _get_chunk_left(self) -> int | None:
        """The bytes that are left of the current chunk, the next one if there are none; None after the last chunk."""
        if self.chunk_left:
            return self.chunk_left
        try:
            if self.chunk_left is not None and self._read_line(MAX_CHUNK_LINE_BYTES):
                raise InvalidResponse("chunk that is longer than its size")
            match = _CHUNK_SIZE.fullmatch(self._read_line(MAX_CHUNK_LINE_BYTES))
        except RemoteDisconnected as exc:
            raise IncompleteRead(b"") from exc
        if match is None:
            raise InvalidResponse("malformed chunk")
        self.chunk_left = int(match[1], 16)
        if not self.chunk_left:
            self._skip_trailers()
            self._close_conn()
            self.chunk_left = None
        return self.chunk_left

    def _skip_trailers(self) -> None:
        """Read to the end of a chunked body. Without an end of the trailers the body is complete all the same."""
        remaining = MAX_TRAILER_BYTES
        try:
            while line := self._read_line(remaining):
                remaining -= len(line)
        except RemoteDisconnected:
            return
        self._is_last_chunk_read = True

    def _close_conn(self) -> None:
        """End the response: at the end of the body, or before that when it is abandoned."""
        is_at_end = self._is_last_chunk_read if self.chunked else self.length == 0
        if self.fp is not None and is_at_end and not self.will_close:
            self.end = self._reader.check_end(self.fp)
        super()._close_conn()  # type: ignore[misc]
