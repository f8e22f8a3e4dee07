"""The age of the bucket's copy of each item, as the modification time of a local file. Blocking.

The modification time of a blob or manifest file is the time at which the bucket got its copy, as far as known. The
modification time of a pointer is the time at which the tag was checked. So a pointer has an empty stamp file for this
purpose, as has an item without a file in the local store.
"""

import contextlib
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import structlog

from dockyard.storage.atomic_write import TEMPORARY_SUFFIX
from dockyard.storage.file_times import age_of
from dockyard.storage.items import BlobItem, Item, TagItem
from dockyard.storage.verified_files import VerifiedFiles

RETRY_TOUCH_S = 60.0

log = structlog.get_logger()


class TouchTimes:
    """The touch times of items. `path_of(item)` returns the path of an item's file; stamp files are in `stamps`.

    Setting the time of a file does not make it one that must be verified again: see `verified_files`.
    """

    def __init__(self, path_of: Callable[[Item], Path], stamps: Path, verified_files: VerifiedFiles) -> None:
        self._path_of = path_of
        self._stamps = stamps
        self._verified_files = verified_files

    def mark_published(self, item: Item, age_s: float = 0.0) -> None:
        """Record that the bucket has the item since `age_s` seconds. Raises nothing."""
        with contextlib.suppress(OSError), self._open(item) as file:
            self._set_time(item, file, time.time() - age_s)

    def claim_touch(self, item: Item, threshold_s: float) -> bool:
        """Whether the bucket's copy is older than the threshold; True for one caller only, over all workers."""
        try:
            with self._open(item) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                found = os.fstat(file.fileno())
                if age_of(found.st_mtime) <= threshold_s:
                    return False
                self._set_time(item, file, time.time())
                return True
        except OSError as exc:
            log.warning("cannot tell whether an object is due for a touch", item=str(item), error=exc.strerror)
            return False

    def release_touch(self, item: Item, threshold_s: float) -> None:
        """Make an item due again in `RETRY_TOUCH_S` seconds: its claimed touch failed."""
        self.mark_published(item, age_s=threshold_s - RETRY_TOUCH_S)

    def _open(self, item: Item) -> BinaryIO:
        return open(self._find(item), "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK))

    def _set_time(self, item: Item, file: BinaryIO, modified_at: float) -> None:
        fd = file.fileno()
        with self._verified_files.keeps_verified(item.digest, fd) if isinstance(item, BlobItem) else nullcontext():
            os.utime(fd, ns=(os.fstat(fd).st_atime_ns, int(modified_at * 1e9)))

    def _find(self, item: Item) -> Path:
        path = self._path_of(item)
        if not isinstance(item, TagItem) and path.exists():
            return path
        path = self._stamps / hashlib.sha256(str(item).encode()).hexdigest()
        if not path.exists():
            self._stamps.mkdir(parents=True, exist_ok=True)
            fd, new = tempfile.mkstemp(TEMPORARY_SUFFIX, dir=self._stamps)
            try:
                os.utime(fd, (0, 0))
                os.rename(new, path)  # now, so that no other thread finds it with the time of its creation
            except OSError:
                Path(new).unlink(missing_ok=True)
                raise
            finally:
                os.close(fd)
        return path
