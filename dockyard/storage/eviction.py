"""Eviction: the least recently used files of the local store are deleted, to keep its cap or to make room. Blocking.

The cap counts all files: blobs, partial files, and the small ones (manifests, tags, lists, touch times), each as the
disk space that it takes. Above the cap, blobs and the partial files that no process writes are evicted, the least
recently used first. The small files are evicted only when they take more than MAX_SMALL_SHARE of the cap: they cost
little, and an image whose layers a client has needs nothing else while the upstream is away.

A file that is larger than MAX_KEPT_SHARE of the cap, or of the disk space that other programs leave, is not kept:
nearly everything else would be evicted for it. Those that are there, from a larger cap, are evicted first.

When a write fails because the disk is full, the same is done to make room; when the disk has no inodes left, small
files are evicted first.

One process at a time evicts. A reader that has an evicted blob open reads it to its end.
"""

import contextlib
import errno
import fcntl
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import attrs
import structlog

from dockyard import metrics
from dockyard.config.units import format_size
from dockyard.storage.allowance import Allowance
from dockyard.storage.atomic_write import is_being_written
from dockyard.storage.directories import Directories
from dockyard.storage.file_times import age_of
from dockyard.storage.stored_files import (
    BLOCK_BYTES,
    StoredFile,
    delete_empty_directories,
    delete_if_unlocked,
    list_files,
)

# An eviction ends when the files take this share of the cap, so that the next one is not due at once.
TARGET_SHARE = 0.9
MAX_KEPT_SHARE = 0.8
MAX_SMALL_SHARE = 0.05
# What is evicted at least when the disk is full, or has no inodes left; but not more than this share of what is stored.
MIN_EVICTED_BYTES = 64 * 1024 * 1024
MIN_EVICTED_FILES = 64
MAX_EVICTED_SHARE = 0.25
# What is evicted at least, of everything that is stored, so that the files are not listed too often.
MIN_EVICTED_SHARE = 0.02
MIN_FREE_INODES = 16
WARNING_INTERVAL_S = 3600.0
# Bytes that were added are counted together with those of the other workers when they are this share of the cap.
COUNTS_PER_CAP = 1000

log = structlog.get_logger()


@attrs.frozen
class _Listing:
    """All files, each kind with the least recently used first. `large` are blobs and partial files."""

    large: deque[StoredFile]
    small: deque[StoredFile]

    @property
    def total_bytes(self) -> int:
        return self.large_bytes + self.small_bytes

    @property
    def large_bytes(self) -> int:
        return sum(file.size for file in self.large)

    @property
    def small_bytes(self) -> int:
        return sum(file.size for file in self.small)


class SizeCap:
    """Keeps the files in `directories` together under `max_size` bytes; 0 means no cap.

    Each file is deleted within `forget(path)`, which yields whether the bucket did not have it yet.
    """

    def __init__(
        self, directories: Directories, max_size: int, forget: Callable[[Path], AbstractContextManager[bool]]
    ) -> None:
        self._directories = directories
        self._max_size = max_size
        self._forget = forget
        self._allowance = Allowance(directories.run / "allowance", max_size)
        self._mutex = threading.Lock()
        self._added_bytes = 0

    def count(self, size: int) -> None:
        """Count bytes that were added to the store. Does not block."""
        with self._mutex:
            self._added_bytes += size

    def enforce_if_due(self) -> None:
        """Evict until all files fit, if enough bytes were added since the last time. Raises nothing.

        Waits while another thread or process evicts: a thread that adds blobs faster than they can be evicted is held
        up here.
        """
        if self._max_size and self._added_bytes >= self._max_size // COUNTS_PER_CAP:
            self.enforce_if_used_up()

    def enforce_if_used_up(self) -> None:
        """As `enforce_if_due`, also when nothing was added here. Raises nothing."""
        if not self._max_size:
            return
        with self._exclusive():
            with self._mutex:
                added_bytes, self._added_bytes = self._added_bytes, 0
            if not self._allowance.use(added_bytes):
                self._enforce()

    @property
    def max_kept_bytes(self) -> float:
        """The size of the largest file that is kept under the cap; infinite without one."""
        return self._max_size * MAX_KEPT_SHARE if self._max_size else math.inf

    def find_reason_not_to_keep(self, size: int, missing_bytes: int) -> str:
        """Why a file of this size, of which so many bytes are still to be written, is not kept; empty if it is.

        Raises nothing.
        """
        if size > self.max_kept_bytes:
            largest = f"{MAX_KEPT_SHARE:.0%} of storage.max_size"
            return f"a layer may take {largest}, which is {format_size(self._max_size)}: raise storage.max_size"
        try:
            found = os.statvfs(self._directories.partial)
        except OSError:
            return ""
        free_bytes = found.f_bavail * found.f_frsize
        if missing_bytes <= free_bytes:
            return ""
        stored_bytes = self.measure()
        if missing_bytes <= MAX_KEPT_SHARE * (free_bytes + stored_bytes):
            return ""
        return (
            f"the disk of storage.directory has {free_bytes >> 20} MiB free, and {stored_bytes >> 20} MiB are cached: "
            "free disk space, or use a larger disk"
        )

    def make_room(self, exc: OSError, size: int) -> bool:
        """Evict because a write of `size` bytes failed; return whether it is worth a retry. Raises nothing."""
        if exc.errno not in {errno.ENOSPC, errno.EDQUOT}:
            return False
        with self._exclusive() as has_waited:
            if has_waited:
                return True  # another process has evicted
            lacks_inodes = self._lacks_inodes()
            listing = self._list()
            freed = 0
            if lacks_inodes or exc.errno == errno.EDQUOT:  # a quota does not say what it is that is used up
                stored_files = len(listing.small) + len(listing.large)
                least = min(MIN_EVICTED_FILES, int(stored_files * MAX_EVICTED_SHARE))
                count = max(1, least, int(stored_files * MIN_EVICTED_SHARE))
                freed += self._evict((listing.small, listing.large), max_files=count)
            if not lacks_inodes:
                stored_bytes = listing.total_bytes
                least = min(MIN_EVICTED_BYTES, int(stored_bytes * MAX_EVICTED_SHARE))
                amount = max(size, least, int(stored_bytes * MIN_EVICTED_SHARE))
                freed += self._evict((listing.large, listing.small), max_bytes=amount)
            return freed > 0

    def measure(self) -> int:
        """Return the disk space of all files, in bytes."""
        return self._list().total_bytes

    def _enforce(self) -> None:
        began = time.monotonic()
        listing = self._list()
        listing_s = time.monotonic() - began
        total = listing.total_bytes
        if total > self._max_size:
            excess = total - int(self._max_size * TARGET_SHARE)
            oversized = deque(file for file in listing.large if file.size - BLOCK_BYTES >= self.max_kept_bytes)
            freed_first = self._evict((oversized,), max_bytes=excess)
            total -= freed_first
            excess -= freed_first
            small_excess = listing.small_bytes - int(self._max_size * MAX_SMALL_SHARE)
            freed = self._evict((listing.small,), max_bytes=min(small_excess, excess))
            freed += self._evict((listing.large,), max_bytes=excess - freed)
            total -= freed
        self._allowance.renew(total, listing_s)

    def _list(self) -> _Listing:
        directories = self._directories
        partial_root = f"{directories.partial}/"  # perhaps below the blobs
        large = [file for file in list_files(directories.blobs) if not file.path.startswith(partial_root)]
        large += list_files(directories.partial, by_modification=True)
        small = [file for root in directories.small for file in list_files(root, by_modification=True)]
        return _Listing(deque(sorted(large)), deque(sorted(small)))

    def _lacks_inodes(self) -> bool:
        try:
            found = os.statvfs(self._directories.partial)
        except OSError:
            return False
        return found.f_files > 0 and found.f_favail < MIN_FREE_INODES  # some file systems do not count them

    def _evict(self, kinds: Iterable[deque[StoredFile]], *, max_bytes: int = 0, max_files: int = 0) -> int:
        """Delete the first files of each kind, until so many bytes or files are deleted; return the bytes."""
        freed_bytes = freed_files = unpublished = 0
        error: OSError | None = None
        for files in kinds:
            while files and (freed_bytes < max_bytes or freed_files < max_files):
                file = files.popleft()
                path = Path(file.path)
                try:
                    with self._forget(path) as was_unpublished:
                        if not self._delete(path):
                            continue
                except OSError as exc:
                    error = exc
                    continue
                freed_bytes += file.size
                freed_files += 1
                unpublished += was_unpublished
        if error:
            log.warning("cannot evict a file, the local store grows", file=error.filename, error=error.strerror)
        if freed_files:
            metrics.evicted_bytes.inc(freed_bytes)
            log.info("evicted the least recently used files", freed_bytes=freed_bytes, files=freed_files)
        self._count_unpublished(unpublished)
        return freed_bytes

    def _delete(self, path: Path) -> bool:
        """Delete a file that no process writes; return whether it was deleted. Raises OSError."""
        if path.parent == self._directories.partial:
            return not is_being_written(path) and delete_if_unlocked(path)
        path.unlink(missing_ok=True)
        for root in self._directories.small:
            delete_empty_directories(path.parent, root)
        return True

    def _count_unpublished(self, count: int) -> None:
        """Count evicted objects that the bucket did not have; log it now and then, in one of the workers."""
        if not count:
            return
        metrics.evicted_unpublished.inc(count)
        logged = self._directories.run / "evicted-unpublished"
        with contextlib.suppress(OSError):
            if logged.exists() and age_of(logged.stat().st_mtime) < WARNING_INTERVAL_S:
                return
            logged.touch()
        log.warning(
            "evicted objects that are not in the bucket yet: they are fetched from the upstream again when needed",
            count=count,
        )

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[bool]:
        """Hold the lock of all workers: the run directory, for which a full disk needs no new file.

        Yields whether another one had it. Without a lock when there is none to be had.
        """
        try:
            lock = os.open(self._directories.run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            yield False
            return
        has_waited = False
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                has_waited = True
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError:  # the file system has no locks
                pass
            yield has_waited
        finally:
            os.close(lock)
