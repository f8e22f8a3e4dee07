"""Atomic file writes, and a lock that lets one process at a time change the files of a directory. Blocking."""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dockyard.storage.file_times import age_of

TEMPORARY_SUFFIX = ".tmp"
COPY_CHUNK_BYTES = 1024 * 1024
# A temporary file that is older was left by a dead process.
MAX_TEMPORARY_FILE_AGE_S = 60.0
# Empty directories are evicted; one that is needed just then is created again.
MAX_DIRECTORY_ATTEMPTS = 5
# A file system that cannot flush (some network and overlay file systems) has no better guarantee to give.
_CANNOT_SYNC_ERRORS = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}


def write_atomically(path: Path, content: bytes, temporary_directory: Path, modified_at: float | None = None) -> None:
    """Write and sync a file in `temporary_directory`, then rename it to `path`.

    `modified_at` is the modification time that it has there from the beginning, if its file system sets times (seconds
    since the epoch; default: now). Creates the parent directories of `path`. Raises OSError; then `path` is what it was
    before.
    """
    fd, temporary = tempfile.mkstemp(suffix=TEMPORARY_SUFFIX, dir=temporary_directory)
    try:
        with open(fd, "wb") as file:
            with contextlib.suppress(OSError):  # without locks: it is deleted only if its times are old
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(content)
            file.flush()
            if modified_at is not None:
                with contextlib.suppress(OSError):
                    os.utime(fd, (time.time(), modified_at))
            sync_file(fd)
            move_synced(Path(temporary), path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def is_being_written(path: Path) -> bool:
    """Whether a file is the temporary file of a process that is still writing it, by its time. Raises OSError.

    One that has an older time on purpose is locked by its writer.
    """
    return path.suffix == TEMPORARY_SUFFIX and age_of(path.stat().st_mtime) < MAX_TEMPORARY_FILE_AGE_S


def move_synced(source: Path, target: Path, on_renamed: Callable[[int], object] = lambda _: None) -> None:
    """Rename a synced file to another directory, which is created if needed. Raises OSError.

    `on_renamed` is called at once after the renaming, with the time at which that began (monotonic clock, ns). When the
    target is on another file system, the file is copied instead. The directory is synced, so that the rename survives
    a power failure, where that is possible: some file systems cannot, and then the file may be absent afterwards.
    """
    for attempt in range(MAX_DIRECTORY_ATTEMPTS):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            began_ns = time.monotonic_ns()
            source.rename(target)
            on_renamed(began_ns)
            break
        except FileNotFoundError:  # the directory was evicted in between
            if attempt == MAX_DIRECTORY_ATTEMPTS - 1:
                raise
        except OSError as exc:
            if exc.errno != errno.EXDEV:
                raise
            _copy_synced(source, target)
            break
    with contextlib.suppress(OSError):
        sync_directory(target.parent)


def sync_file(fd: int) -> None:
    """Flush a file to the disk, if its file system can. Raises OSError when bytes could not be written."""
    try:
        os.fsync(fd)
    except OSError as exc:
        if exc.errno not in _CANNOT_SYNC_ERRORS:
            raise


def sync_directory(path: Path) -> None:
    """Sync a directory, so that renames in it survive a power failure. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _copy_synced(source: Path, target: Path) -> None:
    """Copy a file with its times to another file system, and delete it. Raises OSError."""
    fd, temporary = tempfile.mkstemp(suffix=TEMPORARY_SUFFIX, prefix=".", dir=target.parent)
    try:
        with open(fd, "wb") as copy, source.open("rb") as file:
            shutil.copyfileobj(file, copy, COPY_CHUNK_BYTES)
            copy.flush()
            sync_file(fd)
        with contextlib.suppress(OSError):
            shutil.copystat(source, temporary)
        os.rename(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    source.unlink(missing_ok=True)


@contextlib.contextmanager
def lock_directory(directory: Path) -> Iterator[None]:
    """Hold an exclusive lock on a directory, which is created if needed.

    Runs the block without the lock when the directory cannot be opened or the file system has no locks.
    """
    lock = _lock_existing(directory)
    try:
        yield
    finally:
        if lock >= 0:
            os.close(lock)


def _lock_existing(directory: Path) -> int:
    """Open and lock a directory, and create it if it was evicted meanwhile; -1 when it cannot be opened."""
    lock = -1
    for _ in range(MAX_DIRECTORY_ATTEMPTS):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        except OSError:  # then nothing can be written in it either
            return -1
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(lock), directory.stat()):
                break
        os.close(lock)
        lock = -1
    return lock
