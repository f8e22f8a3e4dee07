"""The size cap of the local store, kept by least recent use.

A file's access time is its last use; it is set by us, so that the mount options do not matter. One process at a time
evicts: the directory is read, the oldest are dropped. Whoever has a dropped blob open reads it to its end.
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

LOW_WATER = 0.9
ROOM_BYTES = 64 * 1024 * 1024
LOOKS_PER_CAP = 50

log = structlog.get_logger()


class SizeCap:
    """Keeps what is below `blobs`, together with what is below `partial`, under `max_size` bytes; 0 = no cap.

    `is_protected(digest)` spares a blob that must not go yet. `lock` is a file that all workers share.
    """

    def __init__(
        self, blobs: Path, partial: Path, lock: Path, max_size: int, is_protected: Callable[[Digest], bool]
    ) -> None:
        self._blobs = blobs
        self._partial = partial
        self._lock = lock
        self._max_size = max_size
        self._is_protected = is_protected
        self._added = 0

    def add(self, size: int) -> None:
        """So many bytes came in."""
        self._added += size

    def enforce_if_due(self) -> None:
        """Enforce, if enough came in since the last time to be worth a look.

        Whoever brings more waits meanwhile, so that what pours in faster than it can be dropped does not pile up.
        """
        if self._is_due:
            with contextlib.suppress(OSError), self._alone(waits=True):
                if self._is_due:  # no other thread has done it meanwhile
                    self._enforce()

    def enforce(self) -> None:
        """Drop the least recently used blobs until all fit. Blocks; raises nothing."""
        if self._max_size:
            with contextlib.suppress(OSError), self._alone():
                self._enforce()

    def free_disk_space(self, size: int) -> bool:
        """The disk is full: drop old blobs. False when there is nothing to drop."""
        try:
            with self._alone():
                return self._drop(_files_below(self._blobs), max(size, ROOM_BYTES)) > 0
        except BlockingIOError:
            return True  # another process is at it
        except OSError:
            return False

    @property
    def _is_due(self) -> bool:
        return bool(self._max_size) and self._added >= self._max_size // LOOKS_PER_CAP

    def _enforce(self) -> None:
        self._added = 0
        blobs = _files_below(self._blobs)
        total = sum(size for _, size, _ in (*blobs, *_files_below(self._partial)))
        if total > self._max_size:
            self._drop(blobs, total - int(self._max_size * LOW_WATER))

    def _drop(self, blobs: list[tuple[float, int, Path]], excess: int) -> int:
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
            return False  # not ours, and in the way

    @contextlib.contextmanager
    def _alone(self, *, waits: bool = False) -> Iterator[None]:
        """Raises BlockingIOError while somebody else evicts, unless it `waits` for that."""
        fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
            yield
        finally:
            os.close(fd)


def _files_below(root: Path) -> list[tuple[float, int, Path]]:
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((status.st_atime, status.st_size, path))
    return found
