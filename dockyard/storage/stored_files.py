"""The files of the local store, as the size cap sees them: listing and deleting them. Blocking."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import attrs

from dockyard.storage.file_times import age_of

BLOCK_BYTES = 4096


@attrs.frozen(order=True)
class StoredFile:
    """One file: how it compares by last use (older is less), the bytes that it takes on the disk, its path."""

    used: float
    size: int
    path: str


def list_files(root: Path, *, by_modification: bool = False) -> Iterator[StoredFile]:
    """List the files below a directory, also through links to directories; what cannot be read is left out.

    The last use is the access time, or the later of access and modification time.
    """
    folders = [str(root)]
    linked = set()
    while folders:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_symlink() and entry.is_dir():
                        found = entry.stat()
                        if (found.st_dev, found.st_ino) not in linked:  # it may lead to a directory above it
                            linked.add((found.st_dev, found.st_ino))
                            folders.append(entry.path)
                    elif entry.is_dir():
                        folders.append(entry.path)
                    else:
                        found = entry.stat(follow_symlinks=False)
                        age_s = age_of(found.st_atime)
                        if by_modification:
                            age_s = min(age_s, age_of(found.st_mtime))
                        blocks = max(-(-found.st_size // BLOCK_BYTES), 1)  # an inode takes space as well
                        yield StoredFile(-age_s, blocks * BLOCK_BYTES, entry.path)


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
