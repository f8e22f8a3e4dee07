"""Atomic file writes, and a lock that lets one process at a time change the files of a directory. Blocking."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: Path, content: bytes, temporary_directory: Path) -> None:
    """Write and sync a file in `temporary_directory`, then rename it to `path` on the same file system.

    Creates the parent directories of `path`. Raises OSError.
    """
    fd, temporary = tempfile.mkstemp(suffix=".tmp", dir=temporary_directory)
    try:
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.rename(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Sync a directory, so that renames in it survive a power failure. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def lock_directory(directory: Path) -> Iterator[None]:
    """Hold an exclusive lock on a directory, which is created if needed.

    Runs the block without the lock when the directory cannot be opened or the file system has no locks.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # then nothing can be written in it either
        yield
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
