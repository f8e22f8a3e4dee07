"""Readers: the bytes of one blob by position, from a complete file or from a running download.

Files are read in the event loop without ever waiting for the disk: the kernel is asked for what is in its page cache,
and only where it would block does a thread read instead.
"""

import errno
import os
from typing import Protocol

from dockyard.cache.download import Download
from dockyard.cache.threads import Threads
from dockyard.errors import Unavailable
from dockyard.storage.local import StoredBlob


class Reader(Protocol):
    """One client's way to a blob of `size` bytes."""

    size: int

    async def find(self, position: int) -> tuple[int | None, int]:
        """The file that has the byte at `position`, as soon as there is one, and how many bytes are there from it on.

        No file: the bytes are in memory, to be had by `read_into`. Raises RegistryError when the bytes will not come.
        """

    async def read_into(self, buffer: bytearray, position: int, amount: int) -> int:
        """Fill `buffer` from `position` with 1 to `amount` bytes, as soon as there are any; how many.

        Raises RegistryError when the bytes will not come.
        """

    def close(self) -> None:
        """Let go."""


class FileReader:
    """A complete blob of the local store."""

    def __init__(self, blob: StoredBlob, threads: Threads) -> None:
        self.size = blob.size
        self._fd = blob.fd
        self._threads = threads

    async def find(self, position: int) -> tuple[int | None, int]:
        """See Reader."""
        return self._fd, self.size - position

    async def read_into(self, buffer: bytearray, position: int, amount: int) -> int:
        """See Reader."""
        return await _read(self._fd, buffer, position, amount, self._threads)

    def close(self) -> None:
        """See Reader."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class DownloadReader:
    """A blob that is being fetched: waits for the bytes that have not landed. `size` is right after `open`."""

    def __init__(self, download: Download, threads: Threads) -> None:
        self.size = 0
        self.position = 0
        self._download = download
        self._is_open = True
        self._threads = threads
        download.attach(self)

    async def open(self) -> None:
        """Wait until the answer can begin. Raises RegistryError when there will be none."""
        self.size = await self._download.opened()

    async def find(self, position: int) -> tuple[int | None, int]:
        """See Reader."""
        self.position = position
        return await self._download.wait_for(position)

    async def read_into(self, buffer: bytearray, position: int, amount: int) -> int:
        """See Reader."""
        fd, available = await self.find(position)
        amount = min(amount, available)
        if fd is not None:
            return await _read(fd, buffer, position, amount, self._threads)
        chunk = self._download.read_overflow(position, amount)
        if not chunk:
            raise Unavailable("the disk is full and this client fell behind", retry_after_s=5)
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        """See Reader."""
        if self._is_open:
            self._is_open = False
            self._download.detach(self)


async def _read(fd: int, buffer: bytearray, position: int, amount: int, threads: Threads) -> int:
    view = memoryview(buffer)[:amount]
    try:
        count = os.preadv(fd, [view], position, os.RWF_NOWAIT)
    except BlockingIOError:
        count = await threads.disk(os.preadv, fd, [view], position)
    except OSError as exc:
        if exc.errno != errno.EOPNOTSUPP:
            raise
        count = os.preadv(fd, [view], position)  # tmpfs: knows no such flag, and never blocks
    if not count:
        raise Unavailable("a cached blob ended early")
    return count
