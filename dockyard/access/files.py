"""A file that is read again when it has changed. Blocking, for many threads.

Kubernetes changes a mounted file by replacing a symbolic link on the way to it, editors replace the file, and others
write into it: each of these changes the status of what the path leads to.
"""

import os
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import attrs

from dockyard.config.files import read_file

# A file that has changed less than this before it was read may change again without another time of change.
UNSETTLED_S = 0.1

T = TypeVar("T")
_Stamp = tuple[int, int, int, int, int]


@attrs.frozen
class FileVersion(Generic[T]):
    """What was read. `error` says why nothing was. `stamp` identifies the version of the file; None: read it again."""

    content: T = attrs.field(repr=False)
    error: str
    stamp: _Stamp | None


class WatchedFile(Generic[T]):
    """A file and what `parse` makes of it; `empty` while it cannot be read or parsed."""

    def __init__(
        self,
        path: str,
        max_bytes: int,
        parse: Callable[[bytes], T],
        empty: T,
        report: Callable[[FileVersion[T]], object] = lambda _: None,
    ) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._parse = parse
        self._empty = empty
        self._report = report
        self._lock = threading.Lock()
        self._current: FileVersion[T] | None = None

    def read(self) -> FileVersion[T]:
        """Return the current version. `report` is called for each version that differs from the one before."""
        with self._lock:
            current = self._current
            if current is None or not self._is_current(current):
                current = self._read()
                before = self._current
                if before is None or (before.content, before.error) != (current.content, current.error):
                    self._report(current)
                self._current = current
            return current

    def find(self) -> FileVersion[T] | None:
        """Return the version in memory if it is that of the file. Only looks at the status of the file."""
        current = self._current
        return current if current is not None and self._is_current(current) else None

    def _is_current(self, version: FileVersion[T]) -> bool:
        try:
            return version.stamp is not None and version.stamp == _stamp(os.stat(self._path))
        except OSError:
            return False

    def _read(self) -> FileVersion[T]:
        try:
            data, found = read_file(self._path, self._max_bytes)
        except ValueError as exc:
            return FileVersion(self._empty, str(exc), None)
        is_settled = not 0 <= time.time() - found.st_ctime <= UNSETTLED_S  # negative: the file server's clock
        stamp = _stamp(found) if is_settled else None
        try:
            return FileVersion(self._parse(data), "", stamp)
        except ValueError as exc:
            return FileVersion(self._empty, str(exc), stamp)


def _stamp(found: os.stat_result) -> _Stamp:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
