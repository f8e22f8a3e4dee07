"""The size cap of the local store: the least recently used blobs are evicted. Blocking.

The access time of a blob's file is its last use. The local store sets it, so that mount options such as `noatime` do
not matter. One process at a time evicts: it lists the directory and deletes the oldest files. A reader that has an
evicted blob open reads it to its end.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog

from dockyard import metrics
from dockyard.errors import DigestInvalid
from dockyard.oci.reference import Digest
from dockyard.storage.file_times import age_of

# An eviction ends when the files take this share of the cap, so that the next one is not due at once.
TARGET_SHARE = 0.9
# What is evicted at least when the disk is full.
MIN_EVICTED_BYTES = 64 * 1024 * 1024
# The directory is listed each time that this share of the cap was added.
CHECKS_PER_CAP = 50

log = structlog.get_logger()


class SizeCap:
    """Keeps the files below `blobs` and `partial` together under `max_size` bytes; 0 means no cap.

    `is_protected(digest)` returns whether a blob must not be evicted yet. `lock` is a file that all workers share.
    """

    def __init__(
        self, blobs: Path, partial: Path, lock: Path, max_size: int, is_protected: Callable[[Digest], bool]
    ) -> None:
        self._blobs = blobs
        self._partial = partial
        self._lock = lock
        self._max_size = max_size
        self._is_protected = is_protected
        self._added_bytes = 0

    def add(self, size: int) -> None:
        """Count bytes that were added to the store. Does not block."""
        self._added_bytes += size

    def enforce_if_due(self) -> None:
        """Evict the least recently used blobs until all files fit, if enough bytes were added since the last time.

        Waits while another thread or process evicts: a thread that adds blobs faster than they can be evicted is held
        up here. Raises nothing.
        """
        if self._is_due:
            with contextlib.suppress(OSError), self._exclusive(blocking=True):
                if self._is_due:  # not enforced by another thread meanwhile
                    self._enforce()

    def free_disk_space(self, size: int) -> bool:
        """Evict at least `size` bytes because the disk is full. False when nothing could be evicted."""
        try:
            with self._exclusive():
                return self._evict(_list_files(self._blobs), max(size, MIN_EVICTED_BYTES)) > 0
        except BlockingIOError:
            return True  # another process is evicting
        except OSError:
            return False

    @property
    def _is_due(self) -> bool:
        return bool(self._max_size) and self._added_bytes >= self._max_size // CHECKS_PER_CAP

    def _enforce(self) -> None:
        self._added_bytes = 0
        blobs = _list_files(self._blobs)
        total = sum(size for _, size, _ in (*blobs, *_list_files(self._partial)))
        if total > self._max_size:
            self._evict(blobs, total - int(self._max_size * TARGET_SHARE))

    def _evict(self, blobs: list[tuple[float, int, Path]], excess: int) -> int:
        freed = 0
        for _, size, path in sorted(blobs):
            if freed >= excess:
                break
            if not self._must_stay(path):
                path.unlink(missing_ok=True)
                freed += size
        metrics.evicted_bytes.inc(freed)
        log.info("evicted the least recently used blobs", freed_bytes=freed)
        return freed

    def _must_stay(self, path: Path) -> bool:
        try:
            return self._is_protected(Digest.parse(f"{path.parts[-3]}:{path.name}"))
        except DigestInvalid:
            return False  # not a blob of this store

    @contextlib.contextmanager
    def _exclusive(self, *, blocking: bool = False) -> Iterator[None]:
        """Hold the lock of all workers. Raises BlockingIOError when it is taken, unless `blocking`."""
        fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
            yield
        finally:
            os.close(fd)


def _list_files(root: Path) -> list[tuple[float, int, Path]]:
    """List the files below a directory: the negated time since the last use, size in bytes, path."""
    files = []
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            with contextlib.suppress(OSError):
                status = path.stat()
                files.append((-age_of(status.st_atime), status.st_size, path))
    return files
