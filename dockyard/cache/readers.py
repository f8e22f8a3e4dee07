"""Readers: the bytes of one blob by position, from a complete file or from a running download.

The event loop reads only what is in the page cache (RWF_NOWAIT); where a read would wait for the disk, a thread reads.
"""

import errno
import os
from typing import Protocol

from dockyard.cache.download import Download
from dockyard.cache.threads import Threads
from dockyard.errors import Unavailable
from dockyard.storage.local import StoredBlob


class Reader(Protocol):
    """One client's access to a blob of `size` bytes."""

    size: int

    async def find(self, position: int) -> tuple[int | None, int]:
        """Wait until the byte at `position` may be read.

        Returns the descriptor of the file that has it, and how many bytes may be read from there. None: they are in
        memory, use `read_into`. Raises RegistryError when the byte will not come.
        """

    async def read_into(self, buffer: bytearray, position: int, amount: int) -> int:
        """Read 1 to `amount` bytes from `position` into `buffer`, waiting for the first; how many.

        Raises RegistryError when the byte at `position` will not come.
        """

    def close(self) -> None:
        """Release the file."""


class FileReader:
    """Reads a complete blob of the local store."""

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
    """Reads a blob that is being downloaded. `size` is set by `open`."""

    def __init__(self, download: Download, threads: Threads) -> None:
        self.size = 0
        self.position = 0
        self._download = download
        self._is_open = True
        self._threads = threads
        download.attach(self)

    async def open(self) -> None:
        """Wait until the response can start. Raises RegistryError."""
        self.size = await self._download.wait_until_readable()

    async def find(self, position: int) -> tuple[int | None, int]:
        """See Reader."""
        self.position = position
        return await self._download.wait_for_byte(position)

    async def read_into(self, buffer: bytearray, position: int, amount: int) -> int:
        """See Reader."""
        fd, available = await self.find(position)
        amount = min(amount, available)
        if fd is not None:
            return await _read(fd, buffer, position, amount, self._threads)
        chunk = self._download.read_memory(position, amount)
        if not chunk:
            raise Unavailable("the disk is full and this client reads too slowly", retry_after_s=5)
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
        count = os.preadv(fd, [view], position)  # tmpfs has no RWF_NOWAIT, and never waits for a disk
    if not count:
        raise Unavailable("a cached blob is shorter than its size")
    return count
