"""The directories of the local store: which they are, and creating them, also again when somebody has deleted them."""

import errno
import os
from pathlib import Path

from dockyard.storage import keys

_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}  # open(2): not on every file system

PARTIAL = "partial"
RUN = "run"
# Where partial files are when the blobs are on another file system than `partial`.
PARTIAL_OF_BLOBS = ".partial"


class Directories:
    """The directories below `root`, which is `storage.directory`; `prefix` is `storage.prefix`.

    `small` are the directories of manifests and tags, of media types, of lists, and of touch times.
    """

    def __init__(self, root: Path, prefix: str) -> None:
        self.root = root
        self.run = root / RUN
        self.stamps = self.run / "touched"
        self.blobs = root / keys.blob_root(prefix)
        roots = (keys.manifest_root(prefix), keys.media_type_root(prefix), keys.list_root(prefix))
        self.small = (*(root / key for key in roots), self.stamps)
        self.partial = root / PARTIAL
        self._is_created = False

    def create(self) -> None:
        """Create the directories that are missing, and find out where partial files must be. Raises OSError."""
        partial = self.root / PARTIAL
        for directory in (self.run, partial, self.blobs):
            directory.mkdir(parents=True, exist_ok=True)
        if not _can_rename(partial, self.blobs):
            partial = self.blobs / PARTIAL_OF_BLOBS
            partial.mkdir(exist_ok=True)
        self.partial = partial
        self._is_created = True

    @property
    def are_missing(self) -> bool:
        """Whether `create` was not called yet, or a directory was deleted since."""
        return not (self._is_created and self.run.is_dir() and self.partial.is_dir() and self.blobs.is_dir())


def check_writable(directory: Path) -> None:
    """Raise OSError unless files can be written in a directory, or below the nearest one above it that exists.

    A file without a name is written, if the file system has such files: nothing is left of it.
    """
    nearest = next(path for path in (directory, *directory.absolute().parents) if os.path.lexists(path))
    try:
        fd = os.open(nearest, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        if exc.errno not in _NO_TMPFILE:
            raise
        if not os.access(nearest, os.W_OK | os.X_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
        return
    try:
        os.write(fd, b"1")
    finally:
        os.close(fd)


def _can_rename(source: Path, target: Path) -> bool:
    """Whether files can be renamed from one directory to another: not between file systems, nor between mounts.

    The kernel checks that before it looks for the file, so none is needed, nor a disk that can be written.
    """
    try:
        os.rename(source / ".absent", target / ".absent")
    except OSError as exc:
        return exc.errno != errno.EXDEV
    return True
