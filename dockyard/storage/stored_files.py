"""The files of the local store, as the size cap sees them: listing and deleting them. Blocking."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dockyard.storage.file_times import MAX_CLOCK_STEP_S

BLOCK_BYTES = 4096


class StoredFile(NamedTuple):
    """One file. A tuple, because there are many: the order is that of the last use, the least recent first.

    `used_at` is in seconds since the epoch, 0 for a time in the future; `size` is the disk space in bytes.
    """

    used_at: float
    size: int
    path: str


def list_files(root: Path, *, by_modification: bool = False) -> Iterator[StoredFile]:
    """List the files below a directory, also through links to directories; what cannot be read is left out.

    The last use is the access time, or the later of access and modification time.
    """
    latest = time.time() + MAX_CLOCK_STEP_S
    folders = [str(root)]
    linked = set()
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except OSError:
            continue
        for entry in entries:
            try:
                if entry.is_dir():
                    if entry.is_symlink():  # it may lead to a directory above it
                        target = entry.stat()
                        if (target.st_dev, target.st_ino) in linked:
                            continue
                        linked.add((target.st_dev, target.st_ino))
                    folders.append(entry.path)
                    continue
                found = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            used_at = found.st_atime if found.st_atime < latest else 0.0
            if by_modification and used_at < found.st_mtime < latest:
                used_at = found.st_mtime
            blocks = -(-found.st_size // BLOCK_BYTES) or 1  # an inode takes space as well
            yield StoredFile(used_at, blocks * BLOCK_BYTES, entry.path)


def delete_if_unlocked(path: Path) -> bool:
    """Delete a file that no process has locked; return whether it is gone. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def delete_empty_directories(path: Path, root: Path) -> None:
    """Delete a directory and those above it, below `root`, as far as they are empty and not locked."""
    with contextlib.suppress(OSError):
        while path != root and root in path.parents:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.rmdir()
            finally:
                os.close(fd)
            path = path.parent
