"""The partial file: the growing local file of one running fetch. One writer, many readers.

The file holds a prefix of the blob, from byte 0. Readers of any worker read it by position; the writer only appends.

When the disk is full (or gone) the partial file *overflows*: what follows is kept in a bounded window of memory, and
the writer waits for the readers of its own worker to pass before it drops the oldest chunk. Nothing is stored then, but
nobody's pull fails. `overflow_start` says where the file stops being of use.
"""

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import structlog

from dockyard import metrics
from dockyard.oci.reference import Digest

log = structlog.get_logger()

MAX_OVERFLOW_BYTES = 8 * 1024 * 1024
SLOW_READER_TIMEOUT_S = 15.0
FOLLOW_TIMEOUT_S = 120.0
_REHASH_CHUNK = 1024 * 1024
_FULL = {errno.ENOSPC, errno.EDQUOT}


class OverflowReader(Protocol):
    """A reader's place in the partial file, in bytes."""

    position: int


class NoReadersLeft(Exception):
    """The partial file overflowed and nobody is left to read it: going on would serve and store nothing."""


class PartialFile:
    """One growing file, opened for its single writer.

    `received_bytes` counts the bytes in the file and beyond it; `size` is the size of the blob, None until it is known.
    The writer calls `append`; readers use `fd` below `overflow_start` and `read_overflow` from there on. Bytes are
    hashed as they are appended.
    """

    def __init__(
        self, digest: Digest, path: Path | None, fd: int, received_bytes: int, free_disk_space: Callable[[int], bool]
    ) -> None:
        self.digest = digest
        self.path = path
        self._make_room = free_disk_space
        self.fd = fd
        self.received_bytes = received_bytes
        self.size: int | None = None
        self.overflow_start: int | None = None if path else received_bytes
        self._is_verified: bool | None = None
        self._hasher = digest.hasher()
        self._hashed = 0
        self._condition = threading.Condition()
        self._window: deque[bytes] = deque()
        self._window_start = received_bytes
        self._cursors: set[OverflowReader] = set()

    @classmethod
    def claim(cls, digest: Digest, path: Path, free_disk_space: Callable[[int], bool]) -> "PartialFile | None":
        """Open and lock the partial file, with whatever a dead writer left in it. None: another process writes it.

        `free_disk_space(size_bytes)` is called when the disk is full; it returns whether the write is worth a retry.
        Raises OSError when the file cannot be created.
        """
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return None
            except BaseException:
                os.close(fd)
                raise
            if _is_same_file(fd, path):
                return cls(digest, path, fd, os.fstat(fd).st_size, free_disk_space)
            os.close(fd)  # swept or finished between open and lock: try the name again

    @classmethod
    def in_memory(cls, digest: Digest, prefix_fd: int = -1, prefix_length: int = 0) -> "PartialFile":
        """A partial file that overflows from the start, after the first `prefix_length` bytes of an open file."""
        fd = os.dup(prefix_fd) if prefix_fd >= 0 else -1
        return cls(digest, None, fd, prefix_length, lambda _: False)

    @property
    def is_overflowing(self) -> bool:
        """Whether new bytes go to memory only."""
        return self.overflow_start is not None

    @property
    def has_gap(self) -> bool:
        """Whether a reader that starts at byte 0 now would find a gap."""
        return self.overflow_start is not None and self._window_start > self.overflow_start

    def hash_existing_bytes(self) -> None:
        """Hash what the file already held before this writer came. Reads the whole prefix once."""
        while self._hashed < self.received_bytes:
            chunk = os.pread(self.fd, min(_REHASH_CHUNK, self.received_bytes - self._hashed), self._hashed)
            if not chunk:
                raise OSError(errno.EIO, "the partial file is shorter than it was")
            self._hasher.update(chunk)
            self._hashed += len(chunk)

    def append(self, chunk: bytes) -> None:
        """Add the next bytes. Never fails for want of disk; blocks while an overflowing window is full.

        Raises NoReadersLeft when overflowing with no reader left.
        """
        self._hasher.update(chunk)
        if not self._write(chunk):
            self._append_to_window(chunk)
        with self._condition:
            self.received_bytes += len(chunk)
            self._condition.notify_all()
        self._hashed = self.received_bytes

    def restart(self) -> None:
        """Forget what has landed, of which nobody has read. The file stays ours."""
        if self.path is not None:
            os.ftruncate(self.fd, 0)
        self.received_bytes = self._hashed = self._window_start = 0
        self.size = None
        self.overflow_start = None if self.path else 0
        self._hasher = self.digest.hasher()
        self._window.clear()

    def begin(self) -> None:
        """A writer starts, perhaps where another one gave up."""
        self._is_verified = None

    def finish(self, *, is_verified: bool) -> None:
        """Tell whoever follows in a thread that the writer has ended, and whether the digest is right."""
        with self._condition:
            self._is_verified = is_verified
            self._condition.notify_all()

    def wait_for_bytes_after(self, position: int) -> int | None:
        """Wait, in a thread, until bytes beyond `position` are in the file: up to where. None: they will not come.

        The last byte is not there before `finish` has said that all are right.
        """
        with self._condition:
            while True:
                if self._is_verified is False or self.overflow_start is not None:
                    return None
                available = self.received_bytes if self._is_verified else self.received_bytes - 1
                if available > position:
                    return available
                if not self._condition.wait(FOLLOW_TIMEOUT_S):
                    return None

    def has_correct_digest(self) -> bool:
        """Whether the bytes that landed have the digest that they were fetched for."""
        return self.digest.matches(self._hasher)

    def attach(self, cursor: OverflowReader) -> None:
        """A reader of this worker: an overflowing writer waits for it."""
        with self._condition:
            self._cursors.add(cursor)

    def detach(self, cursor: OverflowReader) -> None:
        """The reader has left."""
        with self._condition:
            self._cursors.discard(cursor)
            self._condition.notify_all()

    def read_overflow(self, position: int, amount: int) -> bytes:
        """Up to `amount` bytes from memory at `position`; empty when they were dropped before the reader came."""
        with self._condition:
            start = self._window_start
            if position < start:
                return b""
            for chunk in self._window:
                if position < start + len(chunk):
                    self._condition.notify_all()
                    return chunk[position - start : position - start + amount]
                start += len(chunk)
        return b""

    def close(self) -> None:
        """Let go of the file and its lock."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def discard(self) -> None:
        """Delete the partial file and close it."""
        if self.path is not None:
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
        self.close()

    def _write(self, chunk: bytes) -> bool:
        if self.overflow_start is not None:
            return False
        for _ in range(2):
            try:
                _write_all(self.fd, chunk, self.received_bytes)
            except OSError as exc:
                if exc.errno not in _FULL or not self._make_room(len(chunk)):
                    log.warning("cannot write a partial file, serving without it", error=exc.strerror)
                    break
            else:
                return True
        self.overflow_start = self._window_start = self.received_bytes
        metrics.overflows.inc()
        return False

    def _append_to_window(self, chunk: bytes) -> None:
        deadline = time.monotonic() + SLOW_READER_TIMEOUT_S
        with self._condition:
            while sum(map(len, self._window)) + len(chunk) > MAX_OVERFLOW_BYTES:
                if not self._cursors:
                    raise NoReadersLeft
                slowest = min(cursor.position for cursor in self._cursors)
                if slowest >= self._window_start + len(self._window[0]) or time.monotonic() > deadline:
                    self._window_start += len(self._window.popleft())
                else:
                    self._condition.wait(0.05)
            self._window.append(chunk)


def _is_same_file(fd: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _write_all(fd: int, chunk: bytes, offset: int) -> None:
    view = memoryview(chunk)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written
