"""Readers: the bytes of one blob by position, from a complete file or from a running download.

The event loop reads only what is in the page cache (RWF_NOWAIT); where a read would wait for the disk, a thread reads.
"""

import errno
import os
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from dockyard.cache.client_turns import Turns
from dockyard.cache.download import TAIL_BYTES, Download, RequestAhead
from dockyard.cache.download_job import MAX_REQUEST_BYTES
from dockyard.cache.threads import Threads
from dockyard.errors import FailureDetails, Unavailable
from dockyard.oci.ranges import ByteRange
from dockyard.storage.blob_files import BlobFiles, StoredBlob
from dockyard.storage.piece_map import end_of_piece

# Before the last bytes of a complete blob are sent, and after this many, it is checked that the file did not change.
# Fewer bytes than MAX_LAST_BYTES are sent at once.
MAX_BYTES_BETWEEN_CHECKS = 16 * 1024 * 1024
MAX_LAST_BYTES = 1024 * 1024
# A blob of up to this size is read at once: not more than what is buffered for a client of a larger one.
MAX_SMALL_BYTES = 256 * 1024
# When the first bytes of a download are there, many readers wait for them: each sends so many, then the next one.
MAX_FIRST_BYTES = 64 * 1024


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


class BlobReader(Reader, Protocol):
    """A Reader of a blob, of which a client may have requested ranges."""

    def begin(self, ranges: Sequence[ByteRange] | None) -> bool:
        """Prepare to read these ranges, or the whole blob; whether bytes may be sent before the blob is verified.

        Not counted as such are bytes that are sent in the order in which they are received.
        """

    def read_small(self) -> bytearray | None:
        """Read the whole blob; None if it is larger than MAX_SMALL_BYTES, or cannot be read without waiting.

        Raises Unavailable.
        """

    def report_unreadable(self, exc: OSError) -> Unavailable:
        """The descriptor that `find` returned cannot be read. Returns the error for the client."""


class _CompleteFile:
    """The file of a complete, verified blob, which any program may change while it is read.

    A file that was changed is verified again, and its last bytes are withheld until then.
    """

    def __init__(self, blob: StoredBlob, files: BlobFiles, threads: Threads) -> None:
        self._blob = blob
        self._files = files
        self._threads = threads

    async def find(self, position: int) -> tuple[int, int]:
        """Return the descriptor, and how many bytes may be read from a position. Raises Unavailable."""
        await self.check()
        left = self._blob.size - position
        if left > MAX_LAST_BYTES:
            left = min(left - TAIL_BYTES, MAX_BYTES_BETWEEN_CHECKS)
        return self._blob.fd, left

    @property
    def is_unchanged(self) -> bool:
        """Whether the file is as it was when it was verified."""
        return self._files.is_unchanged(self._blob)

    async def check(self) -> None:
        """Raise Unavailable when the file was changed and does not have its digest any more."""
        if self.is_unchanged:
            return
        verified = await self._threads.verify(self._files.verify_again, self._blob)
        if verified is None:
            is_shorter = os.fstat(self._blob.fd).st_size < self._blob.size
            raise Unavailable(f"a cached blob {'ended early' if is_shorter else 'was changed while it was sent'}")
        self._blob = verified

    def report_unreadable(self, exc: OSError) -> None:
        """Have the file verified before its next use."""
        self._files.report_unreadable(self._blob, exc)


class FileReader:
    """Reads a complete, verified blob of the local store."""

    def __init__(self, blob: StoredBlob, files: BlobFiles, threads: Threads) -> None:
        self.size = blob.size
        self._fd = blob.fd
        self._file = _CompleteFile(blob, files, threads)
        self._is_readable = False
        self._threads = threads

    def begin(self, ranges: Sequence[ByteRange] | None) -> bool:
        """See BlobReader. The blob is verified."""
        return False

    def read_small(self) -> bytearray | None:
        """See BlobReader."""
        if self.size > MAX_SMALL_BYTES:
            return None
        buffer = bytearray(self.size)
        try:
            is_complete = _read_now(self._fd, buffer, 0) == self.size
        except OSError as exc:
            raise self.report_unreadable(exc) from exc
        return buffer if is_complete and self._file.is_unchanged else None

    async def find(self, position: int) -> tuple[int | None, int]:
        """See Reader. The first time, the byte is read: nothing is sent before."""
        found = await self._file.find(position)
        if not self._is_readable:
            await self._read(bytearray(1), position, 1)
            self._is_readable = True
        return found

    async def read_into(self, buffer: bytearray, position: int, amount: int) -> int:
        """See Reader."""
        count = await self._read(buffer, position, amount)
        await self._file.check()
        return count

    async def _read(self, buffer: bytearray, position: int, amount: int) -> int:
        try:
            return await _read(self._fd, buffer, position, amount, self._threads)
        except OSError as exc:
            raise self.report_unreadable(exc) from exc

    def report_unreadable(self, exc: OSError) -> Unavailable:
        """See Reader."""
        self._file.report_unreadable(exc)
        return _unreadable(exc)

    def close(self) -> None:
        """See Reader."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class DownloadReader:
    """Reads a blob that is being downloaded or verified. `size` is set by `open`.

    `request_ahead` has parts of it received before others. `turns` are those of the client, if it may read ahead; else
    None.
    """

    def __init__(
        self,
        download: Download,
        files: BlobFiles,
        threads: Threads,
        request_ahead: RequestAhead,
        turns: Turns | None = None,
    ) -> None:
        self.size = 0
        self.position = 0
        self._file_number = 0
        self._download = download
        self._file: _CompleteFile | None = None
        self._is_open = True
        self._files = files
        self._threads = threads
        self._request_ahead = request_ahead
        self._turns = turns
        self._ahead: Sequence[ByteRange] = ()
        self._asked: object = None
        download.attach(self)

    async def open(self, *, is_range: bool = False) -> None:
        """Wait until the response can start; `is_range` as in Blobs.open. Raises RegistryError."""
        self.size = await self._download.wait_until_readable(is_range=is_range)
        self._file_number = self._download.file_number

    def begin(self, ranges: Sequence[ByteRange] | None) -> bool:
        """See BlobReader."""
        if ranges and self._turns:
            self._ahead = [part for part in ranges if self._download.is_ahead(part.start)]
        return bool(self._ahead)

    def read_small(self) -> bytearray | None:
        """See BlobReader. What is downloaded is read as it comes."""
        return None

    async def find(self, position: int) -> tuple[int | None, int]:
        """See Reader."""
        self.position = position
        fd, available = await self._wait_for_byte(position)
        if not position:
            available = min(available, MAX_FIRST_BYTES)
        blob = self._download.complete_blob
        if fd is None or blob is None:
            return fd, available
        if self._file is None:
            self._file = _CompleteFile(blob, self._files, self._threads)
        found = await self._file.find(position)
        return found[0], min(found[1], available)

    async def _wait_for_byte(self, position: int) -> tuple[int | None, int]:
        part = next((part for part in self._ahead if part.start <= position < part.stop), None)
        wait = partial(self._download.wait_for_byte, position, self._file_number)
        if part and self._turns:
            needed = self._find_needed(position, part.stop)
            async with self._turns:
                return await wait(partial(self._request_ahead, self._download, needed), may_read_ahead=True)
        return await wait(self._request_all if self._download.is_on_demand else None)

    def _find_needed(self, position: int, stop: int) -> ByteRange:
        """What to request for the bytes from `position` to `stop`: whole pieces at the end, and not too many."""
        return ByteRange(position, min(end_of_piece(stop), position + MAX_REQUEST_BYTES, self.size))

    async def _request_all(self) -> None:
        """Request the whole blob from the worker that fetches it, once."""
        fetching = self._download.owner if self._download.partial_file is None else self._download.partial_file
        if fetching is not None and fetching != self._asked:
            self._asked = fetching
            await self._request_ahead(self._download, ByteRange(0, self.size))

    async def read_into(self, buffer: bytearray, position: int, amount: int) -> int:
        """See Reader."""
        fd, available = await self.find(position)
        amount = min(amount, available)
        if fd is not None:
            try:
                count = await _read(fd, buffer, position, amount, self._threads)
            except OSError as exc:
                raise self.report_unreadable(exc) from exc
            if self._file:
                await self._file.check()
            return count
        chunk = self._download.read_memory(position, amount)
        if not chunk:
            raise Unavailable("this layer is not kept on disk, and this client reads too slowly", retry_after_s=5)
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def report_unreadable(self, exc: OSError) -> Unavailable:
        """See Reader."""
        if self._file:
            self._file.report_unreadable(exc)
        return _unreadable(exc)

    def close(self) -> None:
        """See Reader."""
        if self._is_open:
            self._is_open = False
            self._download.detach(self)


def _unreadable(exc: OSError) -> Unavailable:
    return Unavailable("a cached blob cannot be read", retry_after_s=1, details=FailureDetails(error=str(exc)))


async def _read(fd: int, buffer: bytearray, position: int, amount: int, threads: Threads) -> int:
    """See `Reader.read_into`. Raises OSError when the file cannot be read, Unavailable when it ends before."""
    view = memoryview(buffer)[:amount]
    count = _read_now(fd, view, position)
    if count is None:
        count = await threads.disk(os.preadv, fd, [view], position)
    if not count:
        raise Unavailable("a cached blob is shorter than its size")
    return count


def _read_now(fd: int, buffer: bytearray | memoryview, position: int) -> int | None:
    """Read what is in the page cache, and return how many bytes; None if a read would wait for the disk.

    Raises OSError.
    """
    try:
        return os.preadv(fd, [buffer], position, os.RWF_NOWAIT)
    except BlockingIOError:
        return None
    except OSError as exc:
        if exc.errno != errno.EOPNOTSUPP:
            raise
        return os.preadv(fd, [buffer], position)  # tmpfs has no RWF_NOWAIT, and never waits for a disk
