"""One blob on its way, as one worker sees it: how far it got, which file to read, who waits.

The last bytes wait: at most `size - TAIL_BYTES` is released until size and digest are right, and nothing of a blob up
to SMALL_BYTES. So a wrong body never completes.
"""

import asyncio
import os
import time

from dockyard.errors import RegistryError, Unavailable, UpstreamTimeout
from dockyard.oci.reference import Digest
from dockyard.storage.partial_file import OverflowReader, PartialFile

TAIL_BYTES = 32 * 1024
SMALL_BYTES = 1024 * 1024
NO_PROGRESS_TIMEOUT_S = 120.0
LOOK_EVERY_S = 30.0
FEW_BYTES = 256 * 1024
PAUSE_EACH_S = 0.001
PAUSE_AT_MOST_S = 0.25


class Download:
    """One blob on its way, as this worker sees it.

    `released` bytes may be read. `size` is None until the upstream has told it. `is_done` and `error` are final;
    `is_interrupted` says that the error is this worker's end and not the upstream's. `is_queued`: its fill waits
    for its turn behind those of others.
    """

    def __init__(self, digest: Digest) -> None:
        self.digest = digest
        self.size: int | None = None
        self.released = 0
        self.is_done = False
        self.error: RegistryError | None = None
        self.is_interrupted = False
        self.is_queued = False
        self.partial_file: PartialFile | None = None
        self.inode = 0
        self._fd = -1
        self._old_fds: list[int] = []
        self._is_over = False
        self._is_reported = False
        self._readers: set[OverflowReader] = set()
        self._waiting: set[asyncio.Future[None]] = set()
        self.changes = 0
        self._announced = 0
        self._announced_at = time.monotonic()
        self._deferred: asyncio.TimerHandle | None = None
        self._look_timer: asyncio.TimerHandle | None = None

    @property
    def is_filling(self) -> bool:
        """Whether the fill runs in this worker."""
        return self.partial_file is not None

    @property
    def overflow_start(self) -> int | None:
        """Where the file stops being of use because the disk is full; None while it is not."""
        return self.partial_file.overflow_start if self.partial_file else None

    @property
    def released_on_disk(self) -> int:
        """How many of the released bytes are in the file."""
        return self.released if self.overflow_start is None else min(self.released, self.overflow_start)

    @property
    def can_be_joined(self) -> bool:
        """Whether a reader from byte 0 would get everything."""
        return self.error is None and not (self.partial_file and self.partial_file.has_gap)

    async def opened(self) -> int:
        """Wait until the answer can begin: the size is known, and a small blob is verified. The size.

        Raises RegistryError when there will be no answer.
        """
        while True:
            if self.error:
                raise self.error
            if self.size is not None and (self.is_done or self.size > SMALL_BYTES):
                return self.size
            await self.news()

    async def wait_for(self, position: int) -> tuple[int | None, int]:
        """Wait until the byte at `position` may be read: the file to read it from, and how many bytes are there.

        No file: the bytes are in memory (`read_overflow`). Raises RegistryError.
        """
        while self.released <= position:
            if self.error:
                raise self.error
            await self.news()
        if position < self.released_on_disk:
            return self._fd, self.released_on_disk - position
        return None, self.released - position

    def read_overflow(self, position: int, amount: int) -> bytes:
        """Bytes of an overflowing partial file; empty when they are gone."""
        return self.partial_file.read_overflow(position, amount) if self.partial_file else b""

    async def news(self, since: int | None = None) -> None:
        """Wait until something has changed, or a fill that is queued has waited for another while.

        `since`: what `changes` was when the caller last looked. Raises UpstreamTimeout when nothing changes for a long
        time.
        """
        if since not in (None, self.changes):
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        if self._look_timer is None:
            self._look_later()
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)

    def attach(self, reader: OverflowReader) -> None:
        """A reader holds the download's file open."""
        self._readers.add(reader)
        if self.partial_file:
            self.partial_file.attach(reader)

    def detach(self, reader: OverflowReader) -> None:
        """The reader has left. The download goes on."""
        self._readers.discard(reader)
        if self.partial_file:
            self.partial_file.detach(reader)
        self._close_when_idle()

    def read_from(self, fd: int, partial_file: PartialFile | None = None) -> None:
        """Read from this file from now on; `partial_file` when this worker fills it. Takes over `fd`."""
        if self._fd >= 0:
            self._old_fds.append(self._fd)  # a reader's thread may be in the middle of it
        self._fd = fd
        self.inode = os.fstat(fd).st_ino if fd >= 0 else 0
        self.partial_file = partial_file
        if partial_file:
            for reader in self._readers:
                partial_file.attach(reader)

    def report_to(self, loop: asyncio.AbstractEventLoop) -> None:
        """Called by the fill's thread: have `advance` run in the loop, once for all reports that it has not seen."""
        if not self._is_reported:
            self._is_reported = True
            loop.call_soon_threadsafe(self._advance)

    def _advance(self) -> None:
        self._is_reported = False
        if self.partial_file is None or self.is_done:
            return
        self.size = self.partial_file.size
        if self.size is not None and self.size > SMALL_BYTES:
            self.released = min(self.partial_file.received_bytes, self.size - TAIL_BYTES)
        self._announce_progress()

    def follow(self, size: int | None, released: int) -> None:
        """The owner says that so many bytes may be read."""
        self.size, self.released = size, released
        self._announce_progress()

    def fork_partial_file(self) -> PartialFile:
        """A partial file that goes on in memory after the bytes that the file of this download has."""
        return PartialFile.in_memory(self.digest, self._fd, self.released_on_disk)

    def complete(self, size: int) -> None:
        """Size and digest are right: everything may be read."""
        self.size = self.released = size
        self.is_done = True
        self._announce()

    def fail(self, error: RegistryError) -> None:
        """There will be no more bytes."""
        if not self.is_done:
            self.error = error
        self._announce()

    def close(self) -> None:
        """The download is over for new readers; those that are there finish."""
        if not self.is_done and self.error is None:
            self.is_interrupted = True
            self.fail(Unavailable("the download was interrupted", retry_after_s=1))
        self._is_over = True
        self._close_when_idle()

    def _announce_progress(self) -> None:
        """Wake who waits; many of them only now and then for a few bytes, but at once for the first.

        Otherwise a line that brings little at a time would keep the loop busy with that alone.
        """
        pause_s = min(len(self._readers) * PAUSE_EACH_S, PAUSE_AT_MOST_S)
        left_s = self._announced_at + pause_s - time.monotonic()
        if not self._announced or self.released - self._announced >= FEW_BYTES or left_s <= 0:
            self._announce()
        elif self._deferred is None:
            self._deferred = asyncio.get_running_loop().call_later(left_s, self._announce)

    def _announce(self) -> None:
        self._announced, self._announced_at = self.released, time.monotonic()
        self.changes += 1
        if self._deferred:
            self._deferred.cancel()
            self._deferred = None
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    def _look_later(self) -> None:
        self._look_timer = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        """Whether those who wait may go on waiting."""
        self._look_timer = None
        if not self._waiting:
            return
        if self.is_queued:
            self._announce()
        elif time.monotonic() - self._announced_at >= NO_PROGRESS_TIMEOUT_S:
            for waiter in self._waiting:
                if not waiter.done():
                    waiter.set_exception(UpstreamTimeout("the download made no progress", retry_after_s=5))
        self._look_later()

    def _close_when_idle(self) -> None:
        if self._readers or not self._is_over:
            return
        for fd in (self._fd, *self._old_fds):
            if fd >= 0:
                os.close(fd)
        self._fd, self._old_fds = -1, []
