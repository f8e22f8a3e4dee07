"""The partial file: the growing local file of one running download. One writer, many readers. Blocking.

The file holds the blob from byte 0 up to its *front*, the last byte received in order. Readers of every worker read the
file by position. The writer appends at the front, and hashes what it appends. It may also write *ahead* of the front:
then the file has holes, and a map of the pieces that are present (`storage.piece_map`). What was written ahead is
hashed when the front reaches it.

When the disk is full or fails, or the blob is too large to be kept, the partial file *overflows*: what follows is kept
in a bounded window of memory, which only the readers of the writer's own worker can read. The writer waits for those
readers before it drops the oldest chunk of the window. The blob is not stored then, but no pull fails. `overflow_start`
is the first byte that is not in the file. The windows of all downloads of a worker share a MemoryBudget; a window is
given back when the last reader has left.

An upload to the bucket reads the window of a blob that is too large to be kept. The writer waits for it too, but all in
all not longer than MAX_UPLOAD_WAIT_S while there are readers: an upload that is slower fails.
"""

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import Protocol

import structlog

from dockyard import metrics
from dockyard.oci.reference import Digest
from dockyard.storage.disk_errors import describe_disk_error
from dockyard.storage.memory_budget import MIN_WINDOW_BYTES, MemoryBudget
from dockyard.storage.piece_map import PIECE_BYTES, PieceMap

log = structlog.get_logger()

UNREADABLE = "cannot read a partial file of a former download: it is discarded"
SLOW_READER_TIMEOUT_S = 15.0
NO_PROGRESS_TIMEOUT_S = 120.0
MAX_UPLOAD_WAIT_S = 5.0
_POLL_S = 0.05
_HASH_CHUNK_BYTES = 1024 * 1024
MAX_WRITE_ATTEMPTS = 3


class OverflowReader(Protocol):
    """A reader that an overflowing writer waits for. `position` is the offset of the next byte that it reads."""

    position: int


class DiskSpace(Protocol):
    """The part of the size cap that writers use."""

    def count(self, size: int, /) -> None:
        """Count bytes that were written. Does not block."""

    def make_room(self, exc: OSError, size: int, /) -> bool:
        """Make room after a write of `size` bytes failed; return whether it is worth a retry."""


class OverflowFull(Exception):
    """The partial file overflows, and other downloads hold all memory that there is for that."""


class NoReadersLeft(Exception):
    """The partial file has no reader: more bytes would be neither served nor stored, or nobody has requested them."""


class PartialFile:
    """One growing file, opened for its single writer.

    `received_bytes` is the front: all bytes before it were received. `size` is the size of the blob, None until it is
    known. The writer calls `append`; readers use `fd` below `overflow_start` and `read_overflow` from there on.

    To write ahead, several threads call `write_piece_bytes` after `begin_pieces`, and one calls `advance`. `pieces`
    says what is present then. `written_bytes` counts what this writer has written, wherever. `is_abandoned`: the writer
    ends because it had no readers, and will not go on for one that is attached now.
    """

    def __init__(
        self,
        digest: Digest,
        path: Path | None,
        fd: int,
        received_bytes: int,
        disk_space: DiskSpace | None,
        memory: MemoryBudget,
    ) -> None:
        self.digest = digest
        self.path = path
        self._disk_space = disk_space
        self._memory = memory
        self.fd = fd
        self.received_bytes = received_bytes
        self.written_bytes = 0
        self.size: int | None = None
        self.pieces: PieceMap | None = None
        self.overflow_start: int | None = None if path else received_bytes
        self.is_passed_through = False
        self.is_abandoned = False
        self._is_verified: bool | None = None
        self._hasher = digest.hasher()
        self._hashed = 0
        self._condition = threading.Condition()
        self._front_lock = threading.Lock()
        self._map_lock = threading.Lock()
        self._window: deque[bytes] = deque()
        self._window_bytes = 0
        self._window_start = received_bytes
        self._readers: set[OverflowReader] = set()
        self._is_released = False
        self._upload_position: int | None = None  # of an upload that reads the window
        self._upload_waited_s = 0.0

    @classmethod
    def claim(
        cls, digest: Digest, path: Path, disk_space: DiskSpace | None, memory: MemoryBudget
    ) -> "PartialFile | None":
        """Open and lock the file, with the bytes that a former writer left in it; None when another process writes it.

        `disk_space` makes room when the disk is full. Raises OSError when the file cannot be created.
        """
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_same_file(fd, path):
                    return cls._open(digest, path, fd, disk_space, memory)
            except BlockingIOError:
                os.close(fd)
                return None
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # deleted or renamed between open and lock: open the path again

    @classmethod
    def _open(
        cls, digest: Digest, path: Path, fd: int, disk_space: DiskSpace | None, memory: MemoryBudget
    ) -> "PartialFile":
        try:
            pieces = PieceMap.read(fd)
        except OSError as exc:
            log.warning(UNREADABLE, digest=str(digest), error=exc.strerror)
            os.ftruncate(fd, 0)
            pieces = None
        front = pieces.find_end_of_run(0) if pieces else os.fstat(fd).st_size
        partial_file = cls(digest, path, fd, front, disk_space, memory)
        partial_file.pieces = pieces
        return partial_file

    @classmethod
    def in_memory(
        cls, digest: Digest, memory: MemoryBudget, prefix_fd: int = -1, prefix_length: int = 0
    ) -> "PartialFile":
        """Create one that overflows from the start, after the first `prefix_length` bytes of an open file."""
        fd = os.dup(prefix_fd) if prefix_fd >= 0 else -1
        return cls(digest, None, fd, prefix_length, None, memory)

    @property
    def is_overflowing(self) -> bool:
        """Whether new bytes are kept in memory only."""
        return self.overflow_start is not None

    @property
    def present_bytes(self) -> int:
        """How many bytes of the blob were received, wherever they are."""
        return max(self.received_bytes, self.pieces.present_bytes if self.pieces else 0)

    @property
    def has_gap(self) -> bool:
        """Whether bytes were dropped from the window, so that a reader that starts at byte 0 would find a gap."""
        return self.overflow_start is not None and self._window_start > self.overflow_start

    def hash_existing_bytes(self) -> None:
        """Hash the bytes that the file had when it was claimed. Raises OSError when they cannot be read."""
        while self._hashed < self.received_bytes:
            chunk = os.pread(self.fd, min(_HASH_CHUNK_BYTES, self.received_bytes - self._hashed), self._hashed)
            if not chunk:
                raise OSError(errno.EIO, "the partial file is shorter than before")
            self._hasher.update(chunk)
            self._hashed += len(chunk)

    def append(self, chunk: bytes) -> None:
        """Add the next bytes. A full disk is no error; blocks while the window of an overflow is full.

        Raises NoReadersLeft when the window is full and there is no reader, OverflowFull when there is no memory.
        """
        self._hasher.update(chunk)
        self._check_map(self.received_bytes + len(chunk))
        if self.overflow_start is None and not self._write(chunk, self.received_bytes):
            self.overflow_start = self._window_start = self.received_bytes
            metrics.overflows.inc()
        if self.overflow_start is not None:
            self._append_to_window(chunk)
        self._move_front(len(chunk))

    # Writing ahead

    def begin_pieces(self) -> bool:
        """Prepare to write ahead, when `size` is known. False when that is impossible: no file, or a full disk."""
        if self.overflow_start is not None or self.size is None:
            return False
        self._check_map(self.received_bytes)
        if self.pieces is not None:
            with contextlib.suppress(OSError):
                os.utime(self.fd)  # it is in use, also if nothing more is received
            return True
        pieces = PieceMap.of_front(self.size, self.received_bytes)
        try:
            pieces.write(self.fd)
        except OSError as exc:
            error = describe_disk_error(exc, self.path or Path())
            log.warning("cannot write ahead in a partial file", file=str(self.path), error=error)
            with contextlib.suppress(OSError):
                os.ftruncate(self.fd, self.received_bytes)
            return False
        self.pieces = pieces
        return True

    def write_piece_bytes(self, chunk: bytes, offset: int) -> bool:
        """Write bytes of a piece; what precedes them in the piece was written before. False when the disk is full.

        For several threads, each with pieces of its own.
        """
        with self._front_lock:
            is_at_front = offset == self.received_bytes
            if is_at_front:
                if not self._write(chunk, offset):
                    return False
                self._hasher.update(chunk)
                self._move_front(len(chunk))
                return True
        if not self._write(chunk, offset):
            return False
        self._mark(offset, offset + len(chunk))
        return True

    def advance(self) -> bool:
        """Move the front over bytes that were written ahead, hashing them; whether there were any.

        Raises OSError when they cannot be read back.
        """
        assert self.pieces is not None  # noqa: S101  for mypy
        with self._front_lock:
            front = self.received_bytes
            amount = min(self.pieces.find_end_of_run(front) - front, _HASH_CHUNK_BYTES)
            if not amount:
                return False
            chunk = os.pread(self.fd, amount, front)
            if not chunk:
                raise OSError(errno.EIO, "the partial file is shorter than before")
            self._hasher.update(chunk)
            self._move_front(len(chunk))
        return True

    def forget_ahead(self) -> None:
        """What was written ahead is to be received again. Its bytes stay in the file until then."""
        if self.pieces is not None:
            with contextlib.suppress(OSError):
                self.pieces.forget_from(self.received_bytes // PIECE_BYTES, self.fd)

    def remove_map(self) -> None:
        """All bytes were received: remove the map behind them. Raises OSError."""
        if self.pieces is not None:
            os.ftruncate(self.fd, self.received_bytes)
            self.pieces = None

    def _check_map(self, stop: int) -> None:
        """Drop a map for a blob of another size: a former source, or a manifest, has announced a wrong one."""
        if self.pieces is None or (self.size in {None, self.pieces.size} and stop <= self.pieces.size):
            return
        self.pieces = None
        with contextlib.suppress(OSError):  # then the digest of the next writer is wrong, which begins anew
            os.ftruncate(self.fd, self.received_bytes)

    def _move_front(self, amount: int) -> None:
        """So many more bytes follow the front, and were hashed."""
        front = self.received_bytes
        self._mark(front, front + amount)
        with self._condition:
            self.received_bytes += amount
            self._hashed = self.received_bytes
            self._condition.notify_all()

    def _mark(self, start: int, stop: int) -> None:
        """Mark the pieces that are present now that the bytes from `start` to `stop` were written."""
        if self.pieces is None or self.overflow_start is not None:
            return
        self.pieces.mark_end(stop)
        for piece in self.pieces.find_ending(start, stop):
            if not self.pieces.has(piece):
                with self._map_lock, contextlib.suppress(OSError):  # then the next writer fetches it again
                    self.pieces.add(piece, self.fd)

    # The rest of the writer's side

    def restart(self) -> None:
        """Drop all bytes received, which no reader may have read, and start again at byte 0. Keeps the lock."""
        if self.path is not None:
            os.ftruncate(self.fd, 0)
        with self._condition:
            self._clear_window()
        self.received_bytes = self._hashed = self._window_start = 0
        self.size = self.pieces = None
        self.overflow_start = None if self.path else 0
        self.is_passed_through = False
        self._hasher = self.digest.hasher()

    def pass_through(self) -> None:
        """Keep what follows in memory only: the blob is too large to be kept."""
        self.is_passed_through = True
        if self.overflow_start is None:
            self.overflow_start = self._window_start = self.received_bytes

    def begin(self) -> None:
        """Start an attempt to write, perhaps after another one that failed."""
        self._is_verified = None

    def finish(self, *, is_verified: bool) -> None:
        """End an attempt to write, and wake `wait_for_bytes_after`. `is_verified`: the digest is correct."""
        with self._condition:
            self._is_verified = is_verified
            self._condition.notify_all()

    def wait_for_memory(self) -> None:
        """Before a download that overflows from its first byte: wait until a window fits. Raises OverflowFull."""
        deadline = time.monotonic() + SLOW_READER_TIMEOUT_S
        while self.is_overflowing and not self._window and self._memory.free_bytes < MIN_WINDOW_BYTES:
            if time.monotonic() > deadline:
                raise OverflowFull
            with self._condition:
                self._condition.wait(_POLL_S)

    def wait_for_bytes_after(self, position: int) -> int | None:
        """Block until the file has bytes after `position`; return the end of what may be read.

        The last byte of the blob may be read only when `finish` has marked the file as verified. Returns None when no
        more bytes will come: the attempt failed, the file overflows, or nothing was received for a long time.
        """
        with self._condition:
            while True:
                if self._is_verified is False or self.overflow_start is not None:
                    return None
                available = self.received_bytes if self._is_verified else self.received_bytes - 1
                if available > position:
                    return available
                if not self._condition.wait(NO_PROGRESS_TIMEOUT_S):
                    return None

    def has_correct_digest(self) -> bool:
        """Whether the bytes received have the digest of the blob."""
        return self.digest.matches(self._hasher)

    def attach(self, reader: OverflowReader) -> None:
        """Register a reader of this worker: an overflowing writer waits for it."""
        with self._condition:
            self._readers.add(reader)

    def detach(self, reader: OverflowReader) -> None:
        """Unregister a reader."""
        with self._condition:
            self._readers.discard(reader)
            self._condition.notify_all()

    def abandon_if_unread(self) -> None:
        """Raise NoReadersLeft if no reader is attached; one that is attached later finds `is_abandoned`."""
        with self._condition:
            if not self._readers:
                self.is_abandoned = True
                raise NoReadersLeft

    def read_overflow(self, position: int, amount: int) -> bytes:
        """Return up to `amount` bytes from memory at `position`; empty when they were dropped. Does not block."""
        with self._condition:
            if self._is_verified:  # no reader joins any more
                self._drop_what_all_have_read()
            start = self._window_start
            if position < start:
                return b""
            for chunk in self._window:
                if position < start + len(chunk):
                    self._condition.notify_all()
                    return chunk[position - start : position - start + amount]
                start += len(chunk)
        return b""

    def release_memory(self) -> None:
        """Give back the window: no reader is left. An upload that reads it keeps it until it ends."""
        with self._condition:
            self._is_released = True
            if self._upload_position is None:
                self._clear_window()

    # The upload of a blob that is not kept

    def begin_upload(self) -> bool:
        """Keep the window for an upload, which then calls `read_for_upload` from byte 0 on.

        False if there is no reader here, so that the download ends soon, or the first bytes are not in the window.
        """
        with self._condition:
            is_read = any(self.size is None or reader.position < self.size for reader in self._readers)
            if is_read and not self._window_start:
                self._upload_position = 0
            return self._upload_position is not None

    def read_for_upload(self, position: int, amount: int) -> bytes:
        """Block until there are bytes at `position`, and return up to `amount` of them; the last one when verified.

        Empty when they will not come, or were dropped because the upload is too slow.
        """
        with self._condition:
            self._upload_position = position
            self._condition.notify_all()
            while True:
                if self._is_verified is False or position < self._window_start:
                    return b""
                withheld = 0 if self._is_verified or self.received_bytes != self.size else 1
                available = self.received_bytes - withheld
                if available > position:
                    break
                if not self._condition.wait(NO_PROGRESS_TIMEOUT_S):
                    return b""
        return self.read_overflow(position, min(amount, available - position))

    def end_upload(self) -> None:
        """Give back what was kept for the upload."""
        with self._condition:
            self._upload_position = None
            if self._is_released:
                self._clear_window()
            self._condition.notify_all()

    def close(self) -> None:
        """Close the file and release its lock, which copies of the descriptor (readers, an upload) would keep."""
        if self.fd >= 0:
            if self.path is not None:
                with contextlib.suppress(OSError):
                    fcntl.flock(self.fd, fcntl.LOCK_UN)
            os.close(self.fd)
            self.fd = -1

    def discard(self) -> None:
        """Delete the partial file and close it."""
        if self.path is not None:
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
        self.close()

    def _write(self, chunk: bytes, offset: int) -> bool:
        """Write to the file, making room for it; False when that is impossible, or the disk fails."""
        for attempt in range(MAX_WRITE_ATTEMPTS):
            try:
                _write_all(self.fd, chunk, offset)
            except OSError as exc:
                is_last = attempt == MAX_WRITE_ATTEMPTS - 1
                if is_last or not self._disk_space or not self._disk_space.make_room(exc, len(chunk)):
                    error = describe_disk_error(exc, self.path or Path())
                    log.warning("cannot write a partial file, serving without it", file=str(self.path), error=error)
                    break
            else:
                with self._condition:
                    self.written_bytes += len(chunk)
                if self._disk_space:
                    self._disk_space.count(len(chunk))
                return True
        return False

    def _append_to_window(self, chunk: bytes) -> None:
        deadline = time.monotonic() + SLOW_READER_TIMEOUT_S
        with self._condition:
            while not self._take_memory(len(chunk)):
                if self._upload_position is None:
                    self.abandon_if_unread()
                is_late = time.monotonic() > deadline
                if self._window and (is_late or self._have_all_read_oldest()):
                    self._drop_oldest()
                elif is_late:
                    raise OverflowFull
                else:
                    self._wait_for_readers()
            self._window.append(chunk)
            self._window_bytes += len(chunk)

    def _take_memory(self, amount: int) -> bool:
        is_within_window = not self._window or self._window_bytes + amount <= self._memory.window_bytes
        return is_within_window and self._memory.take(amount)

    def _wait_for_readers(self) -> None:
        """Wait a moment for readers and for the upload; count the time if it is for the upload only."""
        waits_for_upload = bool(self._readers and self._window) and self._have_clients_read_oldest()
        began = time.monotonic()
        self._condition.wait(_POLL_S)
        if waits_for_upload:
            self._upload_waited_s += time.monotonic() - began

    def _have_all_read_oldest(self) -> bool:
        return self._have_clients_read_oldest() and not self._is_waiting_for_upload()

    def _have_clients_read_oldest(self) -> bool:
        end = self._window_start + len(self._window[0])
        return all(reader.position >= end for reader in self._readers)

    def _is_waiting_for_upload(self) -> bool:
        if self._upload_position is None or not self._window_start <= self._upload_position:
            return False
        is_patient = not self._readers or self._upload_waited_s < MAX_UPLOAD_WAIT_S
        return is_patient and self._upload_position < self._window_start + len(self._window[0])

    def _clear_window(self) -> None:
        while self._window:
            self._drop_oldest()

    def _drop_what_all_have_read(self) -> None:
        while self._window and self._have_all_read_oldest():
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        size = len(self._window.popleft())
        self._window_start += size
        self._window_bytes -= size
        self._memory.give_back(size)


def _is_same_file(fd: int, path: Path) -> bool:
    try:
        by_path = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), by_path)


def _write_all(fd: int, chunk: bytes, offset: int) -> None:
    view = memoryview(chunk)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written
