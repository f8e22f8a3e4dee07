"""Raw bytes on a bare connection, and the number of requests that a strict parser finds in them.

`send_bytes` sends bytes and returns every response on that connection. `count_requests` parses the same bytes with h11,
which neither Dockyard nor Granian uses: a server that sends more responses than that took something for a request which
the next server would not.
"""

import socket
import time
from contextlib import suppress

import attrs
import h11

from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.http_client import READ_BYTES, parse_head


@attrs.frozen
class RawResult:
    """The responses of one connection: statuses, all bytes, and whether the server closed the connection."""

    statuses: tuple[int, ...]
    received: bytes = attrs.field(repr=False)
    is_closed: bool
    took_s: float


def send_bytes(address: tuple[str, int], data: bytes, limit_s: float = EVENT_TIMEOUT_S) -> RawResult:
    """Send the bytes and read until the server closes the connection or sends nothing until the timeout."""
    began = time.monotonic()
    received = b""
    is_closed = False
    with socket.create_connection(address, limit_s) as connection:
        with suppress(ConnectionError):  # a response, and the end, may come before everything was sent
            connection.sendall(data)
        try:
            while more := connection.recv(READ_BYTES):
                received += more
            is_closed = True
        except ConnectionResetError:
            is_closed = True
        except TimeoutError:
            pass
    return RawResult(_statuses(received), received, is_closed, time.monotonic() - began)


def count_requests(data: bytes) -> int:
    """Count the requests; a malformed or incomplete one counts as one, and ends the count.

    Empty lines before a request are skipped, whatever ends them (RFC 9112 section 2.2).
    """
    count = 0
    while data := data.lstrip(b"\r\n"):
        count += 1
        data = _behind_first(data)
    return count


def _behind_first(data: bytes) -> bytes:
    """What follows the first request on a persistent connection; nothing where that cannot be determined."""
    reader = h11.Connection(h11.SERVER, max_incomplete_event_size=2**21)
    reader.receive_data(data)
    reader.receive_data(b"")
    try:
        while reader.next_event() not in (h11.NEED_DATA, h11.PAUSED, h11.ConnectionClosed()):
            pass
        # CONNECT and upgrades are rejected, so what follows is HTTP/1.1 again.
        reader.send(h11.Response(status_code=400, headers=[("Content-Length", "0")]))
        reader.send(h11.EndOfMessage())
    except (h11.RemoteProtocolError, h11.LocalProtocolError):
        return b""
    return reader.trailing_data[0] if reader.our_state is reader.their_state is h11.DONE else b""


def _statuses(data: bytes) -> tuple[int, ...]:
    found = []
    while data:
        head, separator, rest = data.partition(b"\r\n\r\n")
        assert separator, f"not a response: {data[:200]!r}"
        status, headers = parse_head(head)
        length = int({name.lower(): value for name, value in headers}.get("content-length", "0"))
        assert len(rest) >= length, f"a response that ends short: {data[:300]!r}"
        found.append(status)
        data = rest[length:]
    return tuple(found)
