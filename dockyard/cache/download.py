"""One blob being downloaded, as one worker sees it: its state, how far it may be read, and who waits for more.

The state follows this table:

    STARTING   no file yet: the owner is being asked, or the lock on the partial file is being taken
    VERIFYING  the local store has the blob, and this worker hashes its file
    QUEUED     this worker will fetch the blob, when one of its download threads is free
    FETCHING   this worker fetches it
    FOLLOWING  another worker fetches it, and this one reads that worker's partial file
    COMPLETE   size and digest are verified: all bytes may be read
    FAILED     no more bytes will come; `error` says why
    STOPPED    this worker stops fetching, for a reason of its own: followers ask the next owner

A wrong body never reaches its end: at most `size - TAIL_BYTES` is released before size and digest are verified, and
nothing of a blob of up to MAX_SMALL_BYTES. Of a blob that is in the local store already (`is_stored`), nothing is
released for MAX_VERIFY_WAIT_S: most are verified by then, and one that turns out to be damaged is fetched without a
client noticing. When readers have got bytes of a damaged file, they fail; the others read what is fetched instead.

Where the upstream is `lazy`, readers of ranges may read *ahead*: pieces that were received, but do not follow what is
released (`storage.piece_map`). Their bytes are sent although the blob may still turn out to be wrong.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from typing import Final

from dockyard.errors import RegistryError, Unavailable, UpstreamTimeout
from dockyard.oci.ranges import ByteRange
from dockyard.oci.reference import Digest
from dockyard.routing import Target
from dockyard.storage.blob_files import StoredBlob
from dockyard.storage.memory_budget import MemoryBudget
from dockyard.storage.partial_file import NO_PROGRESS_TIMEOUT_S, OverflowReader, PartialFile
from dockyard.storage.piece_map import PieceMap, start_of_piece
from dockyard.storage.verified_files import fingerprint


class State(StrEnum):
    """The states of a download; see the table above."""

    STARTING = "starting"
    VERIFYING = "verifying"
    QUEUED = "queued"
    FETCHING = "fetching"
    FOLLOWING = "following"
    COMPLETE = "complete"
    FAILED = "failed"
    STOPPED = "stopped"


_FINAL: Final = frozenset({State.COMPLETE, State.FAILED, State.STOPPED})
TRANSITIONS: Final[Mapping[State, frozenset[State]]] = {
    State.STARTING: _FINAL | {State.VERIFYING, State.QUEUED, State.FOLLOWING},
    State.VERIFYING: _FINAL | {State.QUEUED},
    State.QUEUED: _FINAL | {State.FETCHING},
    # The logins of all readers were refused, and a reader with another one has joined: it begins anew.
    State.FETCHING: _FINAL | {State.FOLLOWING, State.VERIFYING, State.QUEUED},
    # The owner died: the next one, or this worker, goes on.
    State.FOLLOWING: _FINAL | {State.FOLLOWING, State.VERIFYING, State.QUEUED},
    State.COMPLETE: frozenset(),
    State.FAILED: frozenset(),
    State.STOPPED: frozenset(),
}

TAIL_BYTES = 32 * 1024
MAX_SMALL_BYTES = 1024 * 1024
MAX_VERIFY_WAIT_S = 1.0
MAX_TARGETS = 64
CHECK_INTERVAL_S = 30.0
MIN_AHEAD_BYTES = 8 * 1024 * 1024

# What is received is released at most once in this time after the first bytes: each time, the loop and, over their
# sockets, the other workers are woken, which costs more than to receive a chunk.
RELEASE_INTERVAL_S = 0.004
# Many readers of a slow download are not woken for every chunk: see _announce_progress.
WAKE_BYTES = 256 * 1024
WAKE_DELAY_PER_READER_S = 0.001
MAX_WAKE_DELAY_S = 0.25


class Download:
    """One blob being downloaded. The first `released` bytes may be read; `size` is None while it is unknown.

    `version` grows with every change that wakes the waiters. `targets` are those of its readers, the first one first:
    when the upstream refuses the login of one, or does not have the blob in its repository, the next one is used.
    `is_for_range`: the first reader reads a range. `is_joined`: the worker that is followed had started it before.
    """

    def __init__(self, digest: Digest, target: Target, *, is_for_range: bool = False) -> None:
        self.digest = digest
        self.is_for_range = is_for_range
        self.targets = [target]
        self.state = State.STARTING
        self.size: int | None = None
        self.released = 0
        self.error: RegistryError | None = None
        self.version = 0
        self.inode = 0
        self.is_stored = False
        self.is_joined = False
        self.file_number = 0  # counts the stored files whose bytes readers have got; they cannot go on with another one
        self._is_stored_file_read = False
        self.complete_blob: StoredBlob | None = None  # its file when the download was complete
        self.partial_file: PartialFile | None = None  # None in a follower
        self.owner: int | None = None  # the shard of the worker that is followed
        self._followed_pieces: PieceMap | None = None  # what that worker has said to be present ahead
        self._fd = -1
        self._previous_fds: list[int] = []
        self._readers: set[OverflowReader] = set()
        self._verifying_since = 0.0
        self._is_ended = False
        # In the order in which they began to wait. Other workers are woken first: each of them has readers of its own.
        self._waiting_workers: dict[asyncio.Future[None], None] = {}
        self._waiting_readers: dict[asyncio.Future[None], None] = {}
        self._has_progress = False  # since the last release; set by download threads
        self._is_release_scheduled = False
        self._release_timer: asyncio.TimerHandle | None = None
        self._announced_bytes = 0
        self._announced_at = time.monotonic()
        self._delayed_announcement: asyncio.TimerHandle | None = None
        self._check_timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        size = "?" if self.size is None else self.size
        return f"<Download {self.digest} {self.state} {self.released}/{size} bytes, {len(self._readers)} readers>"

    # State

    @property
    def is_final(self) -> bool:
        """Whether the state will not change any more."""
        return self.state in _FINAL

    @property
    def is_complete(self) -> bool:
        """Whether size and digest are verified."""
        return self.state is State.COMPLETE

    @property
    def is_joinable(self) -> bool:
        """Whether a reader that starts at byte 0 would get everything."""
        return self.error is None and not self.is_abandoned and not (self.partial_file and self.partial_file.has_gap)

    @property
    def is_abandoned(self) -> bool:
        """Whether it ends because it had no readers: one that has been attached since gets an error."""
        return self.partial_file is not None and self.partial_file.is_abandoned

    @property
    def overflow_start(self) -> int | None:
        """Where the partial file ends because the disk is full; None while it is not."""
        return self.partial_file.overflow_start if self.partial_file else None

    @property
    def released_on_disk(self) -> int:
        """How many of the released bytes are in the partial file."""
        return self.released if self.overflow_start is None else min(self.released, self.overflow_start)

    @property
    def is_worked_on(self) -> bool:
        """Whether this worker fetches or verifies the blob."""
        return self.partial_file is not None or self.state is State.VERIFYING

    def start_verifying(self, size: int) -> None:
        """The local store has the blob, and this worker hashes its file of `size` bytes."""
        self._enter(State.VERIFYING)
        self.is_stored, self.size, self.released = True, size, 0
        self._verifying_since = time.monotonic()
        self._announce()

    def report_hashed(self, fd: int, hashed_bytes: int) -> None:
        """The first bytes of the file were hashed."""
        if self.state is not State.VERIFYING or time.monotonic() - self._verifying_since < MAX_VERIFY_WAIT_S:
            return
        if not self.released:
            self._use_file(os.dup(fd))
        assert self.size is not None  # noqa: S101  for mypy
        self.released = max(min(hashed_bytes, self.size - TAIL_BYTES), 0)
        self._is_stored_file_read = True
        self._announce_progress()

    def drop_file(self) -> None:
        """The stored file is damaged or gone: nothing of it may be read any more, and the blob is fetched."""
        self._leave_stored_file()
        self.is_stored, self.size, self.released = False, None, 0
        self._announce()

    def queue(self, partial_file: PartialFile) -> None:
        """This worker fetches the blob into `partial_file`, as soon as a download thread is free."""
        self._enter(State.QUEUED)
        if self.is_stored:
            self.drop_file()
        self.owner = self._followed_pieces = None
        self.released = 0  # until the bytes of a former download are known to be in this file too
        self._use_file(os.dup(partial_file.fd) if partial_file.fd >= 0 else -1)
        self.partial_file = partial_file
        for reader in self._readers:
            partial_file.attach(reader)

    def start_fetching(self) -> None:
        """A download thread works on it now."""
        if not self.is_final:
            self._enter(State.FETCHING)

    def follow(self, fd: int) -> None:
        """Read the partial file of another worker from now on. Takes over `fd`."""
        self._enter(State.FOLLOWING)
        self._use_file(fd)

    def update(self, size: int | None, released: int, *, is_stored: bool = False) -> None:
        """Release more bytes, as the owner reports."""
        if self.is_stored and not is_stored:
            self.drop_file()
        self.size, self.released, self.is_stored = size, released, is_stored
        self._is_stored_file_read = self._is_stored_file_read or (is_stored and released > 0)
        self._announce_progress()

    def complete(self, size: int) -> None:
        """Size and digest are verified: release all bytes."""
        self._enter(State.COMPLETE)
        self.size = self.released = size
        if self._fd >= 0 and self.overflow_start is None:
            self.complete_blob = StoredBlob(self.digest, self._fd, fingerprint(os.fstat(self._fd)), is_verified=True)
        self._announce()

    def complete_with(self, blob: StoredBlob) -> None:
        """Read a complete file instead: the blob is in the local store already. Takes over its descriptor."""
        self._use_file(blob.fd)
        self.is_stored = True
        self.complete(blob.size)
        self.complete_blob = blob

    def fail(self, error: RegistryError) -> None:
        """No more bytes will come."""
        self._enter(State.FAILED)
        self.error = error
        self._announce()

    def stop(self) -> None:
        """This worker does not go on. Readers here get an error, and followers ask the next owner."""
        self._enter(State.STOPPED)
        self.error = Unavailable("the download was interrupted", retry_after_s=1)
        self._announce()

    def continue_in_memory(self, memory: MemoryBudget) -> PartialFile:
        """A partial file that continues in memory after the bytes that are in the file of this download."""
        return PartialFile.in_memory(self.digest, memory, self._fd, self.released_on_disk)

    # Readers

    def add_target(self, target: Target) -> None:
        """A reader of this repository, with this login, has joined."""
        is_known = any(target == known and target.login == known.login for known in self.targets)
        if not is_known and len(self.targets) < MAX_TARGETS:
            self.targets.append(target)

    def attach(self, reader: OverflowReader) -> None:
        """Keep the file open for a reader, of this worker or of a follower."""
        self._readers.add(reader)
        if self.partial_file:
            self.partial_file.attach(reader)

    def detach(self, reader: OverflowReader) -> None:
        """The reader has left. The download goes on without it."""
        self._readers.discard(reader)
        if self.partial_file:
            self.partial_file.detach(reader)
        self._close_if_unused()

    def end(self) -> None:
        """No reader can join any more: the file is closed when the last one has left."""
        self._is_ended = True
        self._close_if_unused()

    async def wait_until_readable(self, *, is_range: bool = False) -> int:
        """Wait until the response can start, and return the size in bytes.

        That is when the size is known; for a small blob, and for a range of a stored one, when it is verified. Raises
        RegistryError.
        """
        while True:
            if self.error:
                raise self.error
            if self.size is not None and (self.is_complete or self._may_start(self.size, is_range=is_range)):
                return self.size
            await self.wait_for_change()

    def _may_start(self, size: int, *, is_range: bool) -> bool:
        """Whether the response may start although the digest is not verified yet."""
        if self.is_stored:
            return self.released > 0 and not is_range
        return size > MAX_SMALL_BYTES

    @property
    def has_readers(self) -> bool:
        """Whether anybody reads it, here or in another worker."""
        return bool(self._readers)

    async def wait_for_byte(
        self,
        position: int,
        file_number: int = 0,
        request: Callable[[], Awaitable[None]] | None = None,
        *,
        may_read_ahead: bool = False,
    ) -> tuple[int | None, int]:
        """Wait until the byte at `position` is released.

        `file_number` is that of the file whose bytes the reader has got. Returns the file descriptor to read from and
        the number of bytes available from there; None as the descriptor means that they are in memory (`read_memory`).
        Raises RegistryError.

        `request` has the byte received, if that is necessary; it is called again after each change until the byte is
        there. `may_read_ahead`: the byte may be one that is present ahead.
        """
        while True:
            version = self.version
            if self.file_number != file_number:
                raise Unavailable("a damaged cached blob was being sent", retry_after_s=1)
            if self.released > position:
                break
            if self.error:
                raise self.error
            if may_read_ahead and (stop := self._find_ahead(position)):
                return self._fd, stop - position
            if request is not None:
                await request()
                if may_read_ahead and self._find_ahead(position):
                    continue
            await self.wait_for_change(version)
        if position < self.released_on_disk:
            return self._fd, self.released_on_disk - position
        return None, self.released - position

    def _find_ahead(self, position: int) -> int:
        """Up to which byte everything from `position` on is present ahead of what is released; 0 for nothing."""
        pieces = self.partial_file.pieces if self.partial_file else self._followed_pieces
        if pieces is None or self.overflow_start is not None:
            return 0
        stop = pieces.find_readable_end(position)
        return stop if stop > position else 0

    def is_ahead(self, position: int) -> bool:
        """Whether a reader that may read ahead does so, rather than wait until the download has reached `position`."""
        if self.is_final or self.is_stored:
            return False
        return position >= self.released + (0 if self.is_on_demand else MIN_AHEAD_BYTES)

    @property
    def is_on_demand(self) -> bool:
        """Whether only what readers request is received."""
        upstream = self.targets[0].upstream
        return upstream.lazy and upstream.lazy_background == "on_demand"

    def add_ahead(self, start: int, stop: int) -> None:
        """The worker that is followed has these bytes, and the piece with the first of them from its beginning on."""
        if self.state is State.FOLLOWING and self.size is not None:
            self._followed_pieces = self._followed_pieces or PieceMap(self.size)
            self._followed_pieces.mark(start_of_piece(start), stop)

    def read_memory(self, position: int, max_bytes: int) -> bytes:
        """Bytes that are in memory because the disk is full; empty when they were dropped."""
        return self.partial_file.read_overflow(position, max_bytes) if self.partial_file else b""

    async def wait_for_change(self, since: int | None = None, *, is_for_worker: bool = False) -> None:
        """Wait until `version` is another than `since`, or than now. `is_for_worker`: to report it to another worker.

        A download that is queued, or verified, counts as changed now and then.

        Raises UpstreamTimeout when nothing changes for NO_PROGRESS_TIMEOUT_S.
        """
        if since not in (None, self.version):
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiting_workers if is_for_worker else self._waiting_readers
        waiters[waiter] = None
        if self._check_timer is None:
            self._start_check_timer()
        try:
            await waiter
        finally:
            del waiters[waiter]

    # Progress

    def report_progress(self, loop: asyncio.AbstractEventLoop) -> None:
        """Called by download threads: have the loop release what was received. Calls are coalesced."""
        self._has_progress = True
        if not self._is_release_scheduled:
            self._is_release_scheduled = True
            loop.call_soon_threadsafe(self._release_received)

    def _release_received(self) -> None:
        """Release what was received, and what comes meanwhile after RELEASE_INTERVAL_S, without a wake-up for each."""
        self._cancel_release()
        self._is_release_scheduled = False  # before what follows is read: a thread may add to it at any moment
        if not self._has_progress or self.partial_file is None or self.is_final:
            return
        self._has_progress = False
        self.size = self.partial_file.size
        if self.size is not None and self.size > MAX_SMALL_BYTES:
            self.released = min(self.partial_file.received_bytes, self.size - TAIL_BYTES)
        self._announce_progress()
        if self.released and self.partial_file.pieces is None:
            self._is_release_scheduled = True
            self._release_timer = asyncio.get_running_loop().call_later(RELEASE_INTERVAL_S, self._release_received)

    def _cancel_release(self) -> None:
        if self._release_timer:
            self._release_timer.cancel()
            self._release_timer = None

    def _announce_progress(self) -> None:
        """Wake the waiters; when they are many, only every WAKE_BYTES or after a delay. The first bytes are at once.

        Otherwise an upstream that sends little at a time would keep the event loop busy with waking readers.
        """
        delay_s = min(len(self._readers) * WAKE_DELAY_PER_READER_S, MAX_WAKE_DELAY_S)
        left_s = self._announced_at + delay_s - time.monotonic()
        if not self._announced_bytes or self.released - self._announced_bytes >= WAKE_BYTES or left_s <= 0:
            self._announce()
        elif self._delayed_announcement is None:
            self._delayed_announcement = asyncio.get_running_loop().call_later(left_s, self._announce)

    def _announce(self) -> None:
        self._announced_bytes, self._announced_at = self.released, time.monotonic()
        self.version += 1
        if self._delayed_announcement:
            self._delayed_announcement.cancel()
            self._delayed_announcement = None
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    @property
    def _waiters(self) -> tuple[asyncio.Future[None], ...]:
        return (*self._waiting_workers, *self._waiting_readers)

    def _start_check_timer(self) -> None:
        self._check_timer = asyncio.get_running_loop().call_later(CHECK_INTERVAL_S, self._check_progress)

    def _check_progress(self) -> None:
        """End the wait of everyone when there was no progress for too long."""
        self._check_timer = None
        if not self._waiters:
            return
        if self.state in {State.QUEUED, State.VERIFYING}:
            self._announce()
        elif time.monotonic() - self._announced_at >= NO_PROGRESS_TIMEOUT_S:
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_exception(UpstreamTimeout("the download made no progress", retry_after_s=5))
        self._start_check_timer()

    def _enter(self, state: State) -> None:
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"{self!r} cannot become {state}")
        self.state = state

    def _use_file(self, fd: int) -> None:
        if self._fd >= 0:
            self._previous_fds.append(self._fd)  # a reader's thread may be reading from it now
        inode = os.fstat(fd).st_ino if fd >= 0 else 0
        if inode != self.inode:
            self._leave_stored_file()
        self._fd, self.inode = fd, inode

    def _leave_stored_file(self) -> None:
        if self._is_stored_file_read:
            self.file_number += 1
            self._is_stored_file_read = False

    def _close_if_unused(self) -> None:
        if self._readers or not self._is_ended:
            return
        self._cancel_release()
        for timer in (self._check_timer, self._delayed_announcement):
            if timer:
                timer.cancel()
        if self.partial_file:
            self.partial_file.release_memory()
        for fd in (self._fd, *self._previous_fds):
            if fd >= 0:
                os.close(fd)
        self._fd, self._previous_fds = -1, []


# Has these bytes of a download received before others: Downloads.request_ahead.
RequestAhead = Callable[[Download, ByteRange], Awaitable[None]]
