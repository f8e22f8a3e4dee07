"""Blobs sent by the kernel: sendfile(2), from the page cache to the client's connection, with no copy in this process.

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

from dockyard.cache.bridge import Threads
from dockyard.cache.readers import Reader
from dockyard.errors import Unavailable
from dockyard.oci.ranges import ByteRange
from dockyard.web.connections import Patience

SMALLEST_BYTES = 1024 * 1024  # below, a connection that can be used again is worth more
AT_ONCE_BYTES = 4 * 1024 * 1024
MEMORY_CHUNK_BYTES = 256 * 1024


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
        while (position := self._part.start + self.sent_bytes) < self._part.stop:
            fd, available = await self._body.find(position)
            amount = min(AT_ONCE_BYTES, available, self._part.stop - position)
            if fd is None:
                await self._send_from_memory(position, amount)
            else:
                await self._send_from_file(fd, position, amount)
            await asyncio.sleep(0)  # a client that reads as fast as we write would keep the others waiting

    async def _send_from_file(self, fd: int, position: int, amount: int) -> None:
        connection = self._connection.fileno()
        try:
            if _is_in_memory(fd, position) and _is_in_memory(fd, position + amount - 1):
                sent = os.sendfile(connection, fd, position, amount)  # what lies between was read with them
            else:
                sent = await self._threads.disk(os.sendfile, connection, fd, position, amount)
        except BlockingIOError:
            await self._wait()
            return
        except OSError as exc:
            if exc.errno == errno.EIO:  # the disk, not the client
                raise Unavailable("a cached blob cannot be read") from exc
            raise
        if not sent:
            raise Unavailable("a cached blob ended early")
        self.sent_bytes += sent

    async def _send_from_memory(self, position: int, amount: int) -> None:
        buffer = bytearray(min(amount, MEMORY_CHUNK_BYTES))
        count = await self._body.read_into(buffer, position, len(buffer))
        await self._send_bytes(bytes(buffer[:count]))
        self.sent_bytes += count

    async def _send_bytes(self, data: bytes) -> None:
        while data:
            try:
                data = data[self._connection.send(data) :]
            except BlockingIOError:
                await self._wait()

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
