"""The outbox: the items that are still to be uploaded to the bucket, one file for each in a directory. Blocking.

The directory survives restarts and outages of the S3 service of any length. Nothing else is stored about uploads.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from dockyard.storage.file_times import age_of
from dockyard.storage.items import Item, parse_item

# The worker that adds an item uploads it; the others leave it alone for this long.
OVERDUE_AFTER_S = 5.0
# An item is added before it is in the local store; it may take this long to get there.
MAX_COMMIT_S = 600.0
_NAME_LENGTH = hashlib.sha256().digest_size * 2


class Outbox:
    """The items that are not in the bucket yet. All methods block, and ignore disk errors."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def add(self, item: Item) -> None:
        """Add an item, as of now. If that fails because of the disk, it is uploaded when it is next due for a touch."""
        path = self._path(item)
        with contextlib.suppress(OSError):
            if item in self:  # a full disk must not empty its file
                with contextlib.suppress(FileNotFoundError):  # else it was removed in this moment
                    os.utime(path)
                    return
            self._directory.mkdir(parents=True, exist_ok=True)
            try:
                path.write_text(str(item))
            except OSError:
                self.remove(item)

    def remove(self, item: Item) -> None:
        """Remove an item: it is in the bucket."""
        with contextlib.suppress(OSError):
            self._path(item).unlink(missing_ok=True)

    def remove_missing(self, item: Item) -> None:
        """Remove an item that is not in the local store, unless it was added less than MAX_COMMIT_S ago."""
        with contextlib.suppress(OSError):
            if age_of(self._path(item).stat().st_mtime) > MAX_COMMIT_S:
                self.remove(item)

    def remove_added_before(self, item: Item, time_s: float) -> None:
        """Remove an item, unless it was added at this time (seconds since the epoch) or later."""
        with contextlib.suppress(OSError):
            if self._path(item).stat().st_mtime < time_s:
                self.remove(item)

    def __contains__(self, item: Item) -> bool:
        """Whether the item is there. A file that a power failure has emptied does not count: it would never be sent."""
        try:
            return self._path(item).read_bytes() == str(item).encode()
        except OSError:
            return False

    def overdue(self) -> Iterator[Item]:
        """Yield the items that were added more than OVERDUE_AFTER_S ago, or in the future: the clock may jump.

        Files that a power failure has emptied are deleted; those of others are ignored.
        """
        for path in self._files():
            with contextlib.suppress(OSError):
                if 0 <= time.time() - path.stat().st_mtime < OVERDUE_AFTER_S:
                    continue
                try:
                    item = parse_item(path.read_text())
                except ValueError:
                    path.unlink()
                else:
                    yield item

    def _files(self) -> list[Path]:
        """The files of items, by the length of their names."""
        try:
            return sorted(path for path in self._directory.iterdir() if len(path.name) == _NAME_LENGTH)
        except OSError:
            return []

    def _path(self, item: Item) -> Path:
        """Return a path of fixed length: the text of an item may be longer than a file name."""
        return self._directory / hashlib.sha256(str(item).encode()).hexdigest()
