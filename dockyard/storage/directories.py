"""The directories of the local store: which they are, and creating them, also again when somebody has deleted them."""

import errno
import os
from pathlib import Path

from dockyard.storage import keys

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


def _can_rename(source: Path, target: Path) -> bool:
    """Whether files can be renamed from one directory to another: not between file systems, nor between mounts.

    The kernel checks that before it looks for the file, so none is needed, nor a disk that can be written.
    """
    try:
        os.rename(source / ".absent", target / ".absent")
    except OSError as exc:
        return exc.errno != errno.EXDEV
    return True
