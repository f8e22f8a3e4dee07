"""The partial file: the growing local file of one running download. One writer, many readers. Blocking.

The file holds the blob from byte 0 up to the last byte received. The writer only appends; readers of every worker read
the file by position.

When the disk is full or fails, the partial file *overflows*: what follows is kept in a bounded window of memory, which
only the readers of the writer's own worker can read. The writer waits for those readers before it drops the oldest
chunk of the window. The blob is not stored then, but no pull fails. `overflow_start` is the first byte that is not in
the file.
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
NO_PROGRESS_TIMEOUT_S = 120.0
_HASH_CHUNK_BYTES = 1024 * 1024
_DISK_FULL_ERRORS = {errno.ENOSPC, errno.EDQUOT}


class OverflowReader(Protocol):
    """A reader that an overflowing writer waits for. `position` is the offset of the next byte that it reads."""

    position: int


class NoReadersLeft(Exception):
    """The partial file overflowed and has no reader: more bytes would be neither served nor stored."""


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
        self._free_disk_space = free_disk_space
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
        self._readers: set[OverflowReader] = set()

    @classmethod
    def claim(cls, digest: Digest, path: Path, free_disk_space: Callable[[int], bool]) -> "PartialFile | None":
        """Open and lock the file, with the bytes that a dead writer left in it; None when another process writes it.

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
            os.close(fd)  # deleted or renamed between open and lock: open the path again

    @classmethod
    def in_memory(cls, digest: Digest, prefix_fd: int = -1, prefix_length: int = 0) -> "PartialFile":
        """Create one that overflows from the start, after the first `prefix_length` bytes of an open file."""
        fd = os.dup(prefix_fd) if prefix_fd >= 0 else -1
        return cls(digest, None, fd, prefix_length, lambda _: False)

    @property
    def is_overflowing(self) -> bool:
        """Whether new bytes are kept in memory only."""
        return self.overflow_start is not None

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

        Raises NoReadersLeft when the window is full and there is no reader.
        """
        self._hasher.update(chunk)
        if not self._write(chunk):
            self._append_to_window(chunk)
        with self._condition:
            self.received_bytes += len(chunk)
            self._condition.notify_all()
        self._hashed = self.received_bytes

    def restart(self) -> None:
        """Drop all bytes received, which no reader may have read, and start again at byte 0. Keeps the lock."""
        if self.path is not None:
            os.ftruncate(self.fd, 0)
        self.received_bytes = self._hashed = self._window_start = 0
        self.size = None
        self.overflow_start = None if self.path else 0
        self._hasher = self.digest.hasher()
        self._window.clear()

    def begin(self) -> None:
        """Start an attempt to write, perhaps after another one that failed."""
        self._is_verified = None

    def finish(self, *, is_verified: bool) -> None:
        """End an attempt to write, and wake `wait_for_bytes_after`. `is_verified`: the digest is correct."""
        with self._condition:
            self._is_verified = is_verified
            self._condition.notify_all()

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

    def read_overflow(self, position: int, amount: int) -> bytes:
        """Return up to `amount` bytes from memory at `position`; empty when they were dropped. Does not block."""
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
        """Close the file and release its lock."""
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
                if exc.errno not in _DISK_FULL_ERRORS or not self._free_disk_space(len(chunk)):
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
                if not self._readers:
                    raise NoReadersLeft
                slowest = min(reader.position for reader in self._readers)
                if slowest >= self._window_start + len(self._window[0]) or time.monotonic() > deadline:
                    self._window_start += len(self._window.popleft())
                else:
                    self._condition.wait(0.05)
            self._window.append(chunk)


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
