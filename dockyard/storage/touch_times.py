"""How old the bucket's copy of an object is, remembered by the local store's file of it.

The modification time of a blob or a manifest is when the bucket got it, as far as we know. A pointer's says when the
tag was checked, so a pointer, like an object that is not in the local store, has an empty file of its own for this.
"""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from dockyard.storage.items import Item, TagItem

RETRY_TOUCH_S = 60.0

log = structlog.get_logger()


class TouchTimes:
    """The ages of items, whose files are found by `path_of(item)`; `stamps` is the directory for the others."""

    def __init__(self, path_of: Callable[[Item], Path], stamps: Path) -> None:
        self._path_of = path_of
        self._stamps = stamps

    def mark_published(self, item: Item, age_s: float = 0.0) -> None:
        """Record that the bucket has the item, written there so long ago."""
        with contextlib.suppress(OSError):
            _set(self._find(item), time.time() - age_s)

    def claim_touch(self, item: Item, threshold_s: float) -> bool:
        """Whether the item is older than the threshold, and no other worker has claimed to touch it."""
        try:
            path = self._find(item)
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                found = os.fstat(file.fileno())
                if time.time() - found.st_mtime <= threshold_s:
                    return False
                _set(path, time.time())
                return True
        except OSError as exc:
            log.warning("cannot tell whether an object is due for a touch", item=str(item), error=exc.strerror)
            return False

    def release_touch(self, item: Item, threshold_s: float) -> None:
        """A claimed touch failed: it is due again in a minute."""
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


def _set(path: Path, published_at: float) -> None:
    os.utime(path, (path.stat().st_atime, published_at))
