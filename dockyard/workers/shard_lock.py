"""The shard of a worker: one lock file per shard, locked for as long as the process runs.

The kernel releases the lock of a process that dies. A worker that finds all shards locked (a rolling reload starts the
new worker before the old one has drained) owns nothing until one is released, and serves meanwhile.
"""

import contextlib
import fcntl
import os
from pathlib import Path


class AlreadyRunning(Exception):
    """Another process holds the lock; `pid` is what it wrote there, 0 when unknown."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"held by process {pid}")
        self.pid = pid


class Lock:
    """An exclusive lock on a file that contains the process id of the holder. Ends with `release` or the process."""

    def __init__(self, path: Path) -> None:
        """Take the lock without waiting.

        The path may be a directory. Where its file system is full or read-only, the process id is not recorded. Raises
        AlreadyRunning, or OSError when the file cannot be created, or the file system has no locks.
        """
        self._fd = _open(path)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read_holder(self._fd, path)
            os.close(self._fd)
            raise AlreadyRunning(holder) from None
        except OSError:
            os.close(self._fd)
            raise
        process_id = str(os.getpid()).encode()
        with contextlib.suppress(OSError):  # only messages, and the patience with a busy worker, need it
            os.pwrite(self._fd, process_id, 0)
            os.ftruncate(self._fd, len(process_id))

    def is_at(self, path: Path) -> bool:
        """Whether the locked file is the one at this path: not when it was deleted, and perhaps created again."""
        try:
            return os.path.samestat(os.fstat(self._fd), path.stat())
        except OSError:
            return False

    def release(self) -> None:
        """Release the lock."""
        os.close(self._fd)


def find_holder(path: Path) -> int | None:
    """The process that holds the lock on a file or directory that exists, 0 when unknown; None without one.

    The lock is taken for a moment to find out. Raises OSError when the file cannot be opened, or cannot be locked.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_holder(fd, path)
    finally:
        os.close(fd)
    return None


def _read_holder(fd: int, path: Path) -> int:
    holder = b"" if path.is_dir() else os.read(fd, 20)
    return int(holder) if holder.isdigit() else 0


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def lock_path(run: Path, shard: int) -> Path:
    """The lock file of a shard."""
    return run / f"shard-{shard}.lock"


def socket_name(shard: int) -> str:
    """The name, in the run directory, of the socket of a shard."""
    return f"shard-{shard}.sock"


def claim_shard(run: Path, shards: int, former: int | None = None) -> tuple[int, Lock] | None:
    """The first shard that is not locked, and its lock; None when all are locked. Blocks. Raises OSError.

    `former` is the shard that the caller had, which is tried first. The socket that the last owner has left is deleted.
    """
    for shard in sorted(range(shards), key=lambda shard: shard != former):
        try:
            lock = Lock(lock_path(run, shard))
        except AlreadyRunning:
            continue
        (run / socket_name(shard)).unlink(missing_ok=True)
        return shard, lock
    return None
