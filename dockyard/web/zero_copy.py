"""Zero-copy sending: the kernel sends a blob from the page cache to the client's connection with sendfile(2).

Granian has no interface for that, so the response is written to the connection under it. This is correct because:

- Granian has nothing left to write to the connection: hyper, its HTTP library, reads a request only after it has
  written all of the response before (hyper 1.12: `Conn::poll_flush`, which alone calls `try_keep_alive` then), unless
  a request before had a body, whose end may be read later. After such a request this is not done.
- Afterwards the connection is shut down, so that no bytes can follow. The response has `Connection: close`.
- It is not done for a request with a body: closing a connection with unread bytes resets it (RFC 9112 section 9.6), and
  the client may lose the end of the response.

After that, Falcon sends the status and headers with an empty body to Granian as usual, which fails to write it and
closes its end. `Connection: close` in these headers keeps Granian from reading another request.

Pages of a file that are not in memory are read by a thread, so that the event loop never waits for the disk.
"""

import asyncio
import contextlib
import email.utils
import errno
import functools
import os
import socket
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus

import falcon.asgi
import structlog

from dockyard.cache.readers import BlobReader
from dockyard.cache.threads import Threads
from dockyard.errors import RegistryError, Unavailable
from dockyard.oci.ranges import ByteRange
from dockyard.web.asgi import Scope
from dockyard.web.connections import (
    Connections,
    StallDetector,
    count_acknowledged,
    limit_unsent,
    read_acknowledged,
    shut_down,
)
from dockyard.web.headers import NO_SNIFFING
from dockyard.web.request_record import CLIENT_STALLED, INTERNAL_ERROR, RequestRecord

MIN_BYTES = 1024 * 1024  # below, a connection that can be reused saves more
MAX_SENDFILE_BYTES = 4 * 1024 * 1024
MAX_OPEN_RANGE_SENDFILE_BYTES = 256 * 1024  # the client may close the connection at any byte
READ_BYTES = 256 * 1024
# What a read of a file fails with, and a write to a connection does not: the disk, or a file system that is not local.
DISK_ERRORS = frozenset({errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.ENODATA, errno.EREMOTEIO, errno.ESTALE})

log = structlog.get_logger("dockyard.request")


class ClientStalled(Exception):
    """The client has acknowledged no bytes for CLIENT_TIMEOUT_S."""


class ZeroCopy:
    """Zero-copy sending of one worker: `find_connection` says whether it is possible, `send` does it."""

    def __init__(self, connections: Connections, threads: Threads, *, is_enabled: bool) -> None:
        self._connections = connections
        self._threads = threads
        self._is_enabled = is_enabled

    def find_connection(self, scope: Scope, ranges: Sequence[ByteRange]) -> socket.socket | None:
        """Return the connection to `send` these ranges of a blob to; None if they must be sent through Granian."""
        if not self._is_enabled or scope["scheme"] != "http" or self._connections.had_body(scope):
            return None
        if len(ranges) != 1 or ranges[0].length < MIN_BYTES:
            return None
        return self._connections.find(scope)

    async def send(
        self,
        connection: socket.socket,
        scope: Scope,
        resp: falcon.asgi.Response,
        record: RequestRecord,
        reader: BlobReader,
        part: ByteRange,
    ) -> None:
        """Send the status and headers of `resp` and the bytes of `part`, then close connection and reader.

        A failure ends the connection before the announced length. It is not raised, since the status was sent: the
        reason goes into `record.end`.
        """
        resp.set_header("connection", "close")
        transmission = _Transmission(connection, reader, part, self._threads)
        if record.has_open_range:
            transmission.limit_unsent()
        try:
            await transmission.send(_response_head(resp))
        except OSError:
            record.set_client_left()
        except ClientStalled:
            record.end = CLIENT_STALLED
        except RegistryError as exc:
            record.cut(exc)
        except Exception:
            record.cut(RegistryError(INTERNAL_ERROR))
            log.exception("internal error while sending a response", path=scope["path"])
        finally:
            record.sent_bytes = transmission.sent_bytes
            if record.end:
                record.sent_bytes = transmission.count_acknowledged()
            self._connections.forget(scope)
            shut_down(connection)
            connection.close()
            reader.close()


def _response_head(resp: falcon.asgi.Response) -> bytes:
    """Return status line and headers (RFC 9112 sections 4 and 5)."""
    status = HTTPStatus(resp.status_code)
    lines = [f"HTTP/1.1 {status.value} {status.phrase}"]
    lines += [f"{name}: {value}" for name, value in resp.headers.items()]
    lines += [f"date: {_format_date(int(time.time()))}"]
    name, value = NO_SNIFFING
    return "\r\n".join(lines).encode("latin-1") + b"\r\n" + name + b": " + value + b"\r\n\r\n"


@functools.lru_cache(maxsize=1)
def _format_date(seconds: int) -> str:
    return email.utils.formatdate(seconds, usegmt=True)


class _Transmission:
    """The bytes of one response on their way to a connection. `sent_bytes` of the body were written so far."""

    def __init__(self, connection: socket.socket, reader: BlobReader, part: ByteRange, threads: Threads) -> None:
        self.sent_bytes = 0
        self._connection = connection
        self._reader = reader
        self._part = part
        self._threads = threads
        self._acknowledged_before = read_acknowledged(connection) or 0
        self._max_sendfile_bytes = MAX_SENDFILE_BYTES
        self._detector = StallDetector()

    def limit_unsent(self) -> None:
        """Write only a little more than the client has room for."""
        self._max_sendfile_bytes = MAX_OPEN_RANGE_SENDFILE_BYTES
        limit_unsent(self._connection)

    def count_acknowledged(self) -> int:
        """How many bytes of the body the client's system has acknowledged."""
        return count_acknowledged(self._connection, self.sent_bytes, self._acknowledged_before)

    async def send(self, head: bytes) -> None:
        """Write the head and the whole part.

        Raises OSError when the client has disconnected, ClientStalled, and RegistryError when the blob ends early.
        """
        self._acknowledged_before += len(head)
        await self._send_bytes(head, socket.MSG_MORE)  # some of the body is there, and follows
        while (position := self._position) < self._part.stop:
            fd, available = await self._reader.find(position)
            stop = min(position + available, self._part.stop)
            if fd is None:
                await self._send_from_memory(stop)
            else:
                await self._send_from_file(fd, stop)
            await asyncio.sleep(0)  # let other requests run, however fast this client reads

    @property
    def _position(self) -> int:
        return self._part.start + self.sent_bytes

    async def _send_from_file(self, fd: int, stop: int) -> None:
        while self._position < stop:
            if not self._is_next_in_memory(fd, stop):
                try:
                    await self._threads.disk(_read_ahead, fd, self._position)
                except OSError as exc:
                    raise self._reader.report_unreadable(exc) from exc
            await self._repeat_when_writable(functools.partial(self._send_some, fd, stop))

    def _send_some(self, fd: int, stop: int) -> bool:
        """Send what the connection accepts now. True: all is sent, or the next bytes are not in memory."""
        amount = min(self._max_sendfile_bytes, stop - self._position)
        try:
            sent = os.sendfile(self._connection.fileno(), fd, self._position, amount)
        except OSError as exc:
            if exc.errno in DISK_ERRORS:
                raise self._reader.report_unreadable(exc) from exc
            raise
        if not sent:
            raise Unavailable("a cached blob ended early")
        self.sent_bytes += sent
        return self._position == stop or not self._is_next_in_memory(fd, stop)

    def _is_next_in_memory(self, fd: int, stop: int) -> bool:
        """Whether the first and the last of the next bytes are in the page cache; those between were read with them."""
        last = min(self._position + MAX_SENDFILE_BYTES, stop) - 1
        return _is_in_memory(fd, self._position) and _is_in_memory(fd, last)

    async def _send_from_memory(self, stop: int) -> None:
        buffer = bytearray(min(stop - self._position, READ_BYTES))
        count = await self._reader.read_into(buffer, self._position, len(buffer))
        await self._send_bytes(bytes(buffer[:count]))
        self.sent_bytes += count

    async def _send_bytes(self, data: bytes, flags: int = 0) -> None:
        left = memoryview(data)

        def send_some() -> bool:
            nonlocal left
            left = left[self._connection.send(left, flags) :]
            return not left

        await self._repeat_when_writable(send_some)

    async def _repeat_when_writable(self, step: Callable[[], bool]) -> None:
        """Call `step` now and whenever the connection is writable, until it returns True.

        Raises what `step` raises, and ClientStalled.
        """
        with contextlib.suppress(BlockingIOError):
            if step():
                return
        loop, fd = asyncio.get_running_loop(), self._connection.fileno()
        done: asyncio.Future[None] = loop.create_future()
        loop.add_writer(fd, _call, step, done)
        try:
            while not (await asyncio.wait([done], timeout=self._detector.check_every_s))[0]:
                # A slow client may read for long before the kernel reports the connection as writable.
                if self._detector.is_stalled(self._connection):
                    raise ClientStalled
            done.result()
        finally:
            loop.remove_writer(fd)


def _call(step: Callable[[], bool], done: asyncio.Future[None]) -> None:
    try:
        if not done.done() and step():
            done.set_result(None)
    except BlockingIOError:
        pass
    except Exception as exc:  # noqa: BLE001  raised where `done` is awaited
        done.set_exception(exc)


def _read_ahead(fd: int, position: int) -> None:
    """Read the next part of a file into the page cache. Blocks. Raises OSError."""
    buffer = bytearray(READ_BYTES)
    for start in range(position, position + MAX_SENDFILE_BYTES, READ_BYTES):
        os.preadv(fd, [buffer], start)


def _is_in_memory(fd: int, position: int) -> bool:
    """Whether a byte of a file is in the page cache."""
    try:
        os.preadv(fd, [bytearray(1)], position, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError as exc:
        return exc.errno == errno.EOPNOTSUPP  # tmpfs does not support RWF_NOWAIT, and never blocks
    return True
