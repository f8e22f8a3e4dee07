"""Blobs sent by the kernel: sendfile(2), from the page cache to the client's connection, with no copy in this process.

Granian has no such way, so the connection under it is written to, and closed. That is safe on one condition, which is
checked: Granian has never written to this connection. Then none of its bytes can come between ours, and afterwards the
connection is shut, so that nothing can follow them. The answer says `Connection: close`. A request on a connection
that was used before, or over TLS, is answered through Granian.

The pages of a file that are not in memory are read by a thread: the event loop waits for no disk.
"""

import asyncio
import contextlib
import email.utils
import errno
import functools
import os
import socket
from collections.abc import Callable, Iterable
from http import HTTPStatus

from dockyard.cache.readers import Reader
from dockyard.cache.threads import Threads
from dockyard.errors import Unavailable
from dockyard.oci.ranges import ByteRange
from dockyard.web.connections import Patience

SMALLEST_BYTES = 1024 * 1024  # below, a connection that can be used again is worth more
AT_ONCE_BYTES = 4 * 1024 * 1024
READ_BYTES = 256 * 1024


class Stalled(Exception):
    """The client reads nothing."""


def response_head(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Status line and headers (RFC 9112 sections 4 and 5) of an answer after which the connection is closed."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
    lines += [name + b": " + value for name, value in headers]
    lines += [b"date: " + email.utils.formatdate(usegmt=True).encode(), b"connection: close", b"", b""]
    return b"\r\n".join(lines)


class DirectAnswer:
    """One answer, written to a connection that the caller owns. `sent_bytes` of its body are written so far."""

    def __init__(
        self, connection: socket.socket, body: Reader, part: ByteRange, threads: Threads, timeout_s: float
    ) -> None:
        self.sent_bytes = 0
        self._connection = connection
        self._body = body
        self._part = part
        self._threads = threads
        self._patience = Patience(timeout_s)

    async def send(self, head: bytes) -> None:
        """Write all of it. Raises OSError when the client has left, Stalled, and RegistryError when no more comes."""
        await self._send_bytes(head)
        while (position := self._position) < self._part.stop:
            fd, available = await self._body.find(position)
            stop = min(position + available, self._part.stop)
            if fd is None:
                await self._send_from_memory(stop)
            else:
                await self._send_from_file(fd, stop)
            await asyncio.sleep(0)  # a client that reads as fast as we write would keep the others waiting

    @property
    def _position(self) -> int:
        return self._part.start + self.sent_bytes

    async def _send_from_file(self, fd: int, stop: int) -> None:
        while self._position < stop:
            if not self._is_next_in_memory(fd, stop):
                await self._threads.disk(_read_ahead, fd, self._position)
            await self._as_it_takes(functools.partial(self._send_some, fd, stop))

    def _send_some(self, fd: int, stop: int) -> bool:
        """Send what the connection takes now. True: that was all, or what comes next is not in memory."""
        amount = min(AT_ONCE_BYTES, stop - self._position)
        try:
            sent = os.sendfile(self._connection.fileno(), fd, self._position, amount)
        except OSError as exc:
            if exc.errno == errno.EIO:  # the disk, not the client
                raise Unavailable("a cached blob cannot be read") from exc
            raise
        if not sent:
            raise Unavailable("a cached blob ended early")
        self.sent_bytes += sent
        return self._position == stop or not self._is_next_in_memory(fd, stop)

    def _is_next_in_memory(self, fd: int, stop: int) -> bool:
        """Whether both ends of what comes next are in the page cache; what lies between was read with them."""
        last = min(self._position + AT_ONCE_BYTES, stop) - 1
        return _is_in_memory(fd, self._position) and _is_in_memory(fd, last)

    async def _send_from_memory(self, stop: int) -> None:
        buffer = bytearray(min(stop - self._position, READ_BYTES))
        count = await self._body.read_into(buffer, self._position, len(buffer))
        await self._send_bytes(bytes(buffer[:count]))
        self.sent_bytes += count

    async def _send_bytes(self, data: bytes) -> None:
        left = memoryview(data)

        def send_some() -> bool:
            nonlocal left
            left = left[self._connection.send(left) :]
            return not left

        await self._as_it_takes(send_some)

    async def _as_it_takes(self, step: Callable[[], bool]) -> None:
        """Call `step` now and whenever the connection takes more, until it is True. Raises what it raises; Stalled."""
        with contextlib.suppress(BlockingIOError):
            if step():
                return
        loop, fd = asyncio.get_running_loop(), self._connection.fileno()
        done: asyncio.Future[None] = loop.create_future()
        loop.add_writer(fd, _call, step, done)
        try:
            while not (await asyncio.wait([done], timeout=self._patience.look_every_s))[0]:
                if self._patience.is_over(self._connection):  # the kernel says late that there is room: it was asked
                    raise Stalled
            done.result()
        finally:
            loop.remove_writer(fd)


def _call(step: Callable[[], bool], done: asyncio.Future[None]) -> None:
    try:
        if not done.done() and step():
            done.set_result(None)
    except BlockingIOError:
        pass
    except Exception as exc:  # noqa: BLE001  it is raised where `done` is awaited
        done.set_exception(exc)


def _read_ahead(fd: int, position: int) -> None:
    """Have the next part of a file in the page cache, waiting for the disk. Raises Unavailable."""
    buffer = bytearray(READ_BYTES)
    for start in range(position, position + AT_ONCE_BYTES, READ_BYTES):
        try:
            os.preadv(fd, [buffer], start)
        except OSError as exc:
            raise Unavailable("a cached blob cannot be read") from exc


def _is_in_memory(fd: int, position: int) -> bool:
    """Whether a byte of a file is in the page cache."""
    try:
        os.preadv(fd, [bytearray(1)], position, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError as exc:
        return exc.errno == errno.EOPNOTSUPP  # tmpfs: knows no such flag, and never blocks
    return True
