"""The age of the bucket's copy of each item, as the modification time of a local file. Blocking.

The modification time of a blob or manifest file is the time at which the bucket got its copy, as far as known. The
modification time of a pointer is the time at which the tag was checked. So a pointer has an empty stamp file for this
purpose, as has an item without a file in the local store.
"""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from dockyard.storage.file_times import age_of
from dockyard.storage.items import Item, TagItem

RETRY_TOUCH_S = 60.0

log = structlog.get_logger()


class TouchTimes:
    """The touch times of items. `path_of(item)` returns the path of an item's file; stamp files are in `stamps`."""

    def __init__(self, path_of: Callable[[Item], Path], stamps: Path) -> None:
        self._path_of = path_of
        self._stamps = stamps

    def mark_published(self, item: Item, age_s: float = 0.0) -> None:
        """Record that the bucket has the item since `age_s` seconds. Raises nothing."""
        with contextlib.suppress(OSError):
            _set_modification_time(self._find(item), time.time() - age_s)

    def claim_touch(self, item: Item, threshold_s: float) -> bool:
        """Whether the bucket's copy is older than the threshold; True for one caller only, over all workers."""
        try:
            path = self._find(item)
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                found = os.fstat(file.fileno())
                if age_of(found.st_mtime) <= threshold_s:
                    return False
                _set_modification_time(path, time.time())
                return True
        except OSError as exc:
            log.warning("cannot tell whether an object is due for a touch", item=str(item), error=exc.strerror)
            return False

    def release_touch(self, item: Item, threshold_s: float) -> None:
        """Make an item due again in `RETRY_TOUCH_S` seconds: its claimed touch failed."""
        self.mark_published(item, age_s=threshold_s - RETRY_TOUCH_S)

    def _find(self, item: Item) -> Path:
        path = self._path_of(item)
        if not isinstance(item, TagItem) and path.exists():
            return path
        path = self._stamps / hashlib.sha256(str(item).encode()).hexdigest()
        if not path.exists():
            self._stamps.mkdir(parents=True, exist_ok=True)
            path.touch()
            os.utime(path, (0, 0))
        return path


def _set_modification_time(path: Path, modified_at: float) -> None:
    os.utime(path, (path.stat().st_atime, modified_at))
