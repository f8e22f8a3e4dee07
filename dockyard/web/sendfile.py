"""Files sent by the kernel: sendfile(2), from the page cache to the client's connection, with no copy in this process.

Granian has no such way, so the connection under it is written to, and closed. That is safe on one condition, which is
checked: Granian has never written to this connection. Then none of its bytes can come between ours, and afterwards the
connection is shut, so that nothing can follow them. The answer says `Connection: close`. A request on a connection
that was used before, or over TLS, is answered through Granian.

The pages of a file that are not in memory are read by a thread: the event loop waits for no disk.
"""

import asyncio
import email.utils
import errno
import os
import socket
from collections.abc import Iterable
from http import HTTPStatus

import attrs

from dockyard.cache.bridge import Threads
from dockyard.web.connections import Patience

SMALLEST_BYTES = 1024 * 1024  # below, a connection that can be used again is worth more
AT_ONCE_BYTES = 4 * 1024 * 1024


@attrs.frozen
class FilePart:
    """The bytes `start` to `stop` of a file that somebody else keeps open."""

    fd: int
    start: int
    stop: int


class Stalled(Exception):
    """The client reads nothing."""


class Ended(Exception):
    """The file is shorter than it was."""


def response_head(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Status line and headers (RFC 9112 sections 4 and 5) of an answer after which the connection is closed."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
    lines += [name + b": " + value for name, value in headers]
    lines += [b"date: " + email.utils.formatdate(usegmt=True).encode(), b"connection: close", b"", b""]
    return b"\r\n".join(lines)


class FileAnswer:
    """One answer, written to a connection that the caller owns. `sent_bytes` of the file are written so far."""

    def __init__(self, connection: socket.socket, part: FilePart, threads: Threads, timeout_s: float) -> None:
        self.sent_bytes = 0
        self._connection = connection
        self._part = part
        self._threads = threads
        self._patience = Patience(timeout_s)

    async def send(self, head: bytes) -> None:
        """Write all of it. Raises OSError when the client has left, Stalled, and Ended."""
        while head:
            try:
                head = head[self._connection.send(head, socket.MSG_MORE) :]
            except BlockingIOError:
                await self._wait()
        while self._part.start + self.sent_bytes < self._part.stop:
            try:
                sent = await self._send_some()
            except BlockingIOError:
                await self._wait()
                continue
            if not sent:
                raise Ended
            self.sent_bytes += sent
            await asyncio.sleep(0)  # a client that reads as fast as we write would keep the others waiting

    async def _send_some(self) -> int:
        position = self._part.start + self.sent_bytes
        amount = min(AT_ONCE_BYTES, self._part.stop - position)
        to, what = self._connection.fileno(), self._part.fd
        if _is_in_memory(what, position) and _is_in_memory(what, position + amount - 1):
            return os.sendfile(to, what, position, amount)  # what lies between was read with them
        return await self._threads.disk(os.sendfile, to, what, position, amount)

    async def _wait(self) -> None:
        """Wait until the connection takes more. The kernel says so late: see whether the client reads meanwhile."""
        loop = asyncio.get_running_loop()
        while True:
            waiter: asyncio.Future[None] = loop.create_future()
            loop.add_writer(self._connection.fileno(), _wake, waiter)
            try:
                async with asyncio.timeout(self._patience.look_every_s):
                    await waiter
                return
            except TimeoutError:
                if self._patience.is_over(self._connection):
                    raise Stalled from None
            finally:
                loop.remove_writer(self._connection.fileno())


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _is_in_memory(fd: int, position: int) -> bool:
    """Whether a byte of a file is in the page cache."""
    try:
        os.preadv(fd, [bytearray(1)], position, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError as exc:
        return exc.errno == errno.EOPNOTSUPP  # tmpfs: knows no such flag, and never blocks
    return True
