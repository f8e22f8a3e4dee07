"""What is to be brought to S3, and the directory that remembers it.

An item that is in the local store and not yet in the bucket has a file here that says its name. The directory is the
queue: it survives a restart, and an outage of S3 of any length. Nothing else about publishing is kept anywhere.
"""

import contextlib
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

from dockyard.storage.items import Item, parse_item

BEING_BROUGHT_S = 5.0
ABOUT_TO_BE_THERE_S = 600.0


class Outbox:
    """The items that are not yet in the bucket. Methods raise OSError only where they say so."""

    def __init__(self, directory: Path) -> None:
        """Raises OSError when the directory cannot be made."""
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory

    def add(self, item: Item) -> None:
        """Remember an item. On a disk that takes nothing it is forgotten, and published when it is next touched."""
        with contextlib.suppress(OSError):
            self._path(item).write_text(str(item))

    def remove(self, item: Item) -> None:
        """The item is in the bucket, or nowhere any more."""
        with contextlib.suppress(OSError):
            self._path(item).unlink(missing_ok=True)

    def remove_if_stale(self, item: Item) -> None:
        """The item is not in the local store: forget it, unless it was added a moment ago and is about to be there."""
        with contextlib.suppress(OSError):
            if time.time() - self._path(item).stat().st_mtime > ABOUT_TO_BE_THERE_S:
                self.remove(item)

    def __contains__(self, item: Item) -> bool:
        return self._path(item).exists()

    def __iter__(self) -> Iterator[Item]:
        """All items; a file that names none is passed over."""
        with contextlib.suppress(OSError):
            for path in sorted(self._directory.iterdir()):
                with contextlib.suppress(OSError, ValueError):
                    yield parse_item(path.read_text())

    def overdue(self) -> Iterator[Item]:
        """The items that were not added a moment ago: whoever adds one brings it, if nothing happens to it."""
        for item in self:
            with contextlib.suppress(OSError):
                if not 0 <= time.time() - self._path(item).stat().st_mtime < BEING_BROUGHT_S:
                    yield item

    def _path(self, item: Item) -> Path:
        """A name of fixed length: those of items can be longer than a file system takes."""
        return self._directory / hashlib.sha256(str(item).encode()).hexdigest()
