"""Which shard am I: one lock file per shard, held for as long as the process lives.

The kernel frees a lock the moment its holder dies, however it dies. A worker that finds all shards taken (a rolling
reload starts the new worker before the old one has drained) owns nothing until one is free, and works all the same.
"""

import fcntl
import os
from pathlib import Path


class AlreadyRunning(Exception):
    """Another process holds the lock; `pid` is what it wrote there, 0 when unknown."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"held by process {pid}")
        self.pid = pid


class Lock:
    """An exclusive lock on a file, with the holder's pid in it. Freed by `release` or by death."""

    def __init__(self, path: Path) -> None:
        """Take the lock at once or raise AlreadyRunning; OSError when the file cannot be made."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._fd, 20)
            os.close(self._fd)
            raise AlreadyRunning(int(holder) if holder.isdigit() else 0) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Let go."""
        os.close(self._fd)


def lock_path(run: Path, shard: int) -> Path:
    """The lock file of a shard."""
    return run / f"shard-{shard}.lock"


def socket_name(shard: int) -> str:
    """The name, in the run directory, of the socket that a shard's owner listens on."""
    return f"shard-{shard}.sock"


def claim_shard(run: Path, shards: int) -> tuple[int, Lock] | None:
    """The first free shard and its lock; None when all are taken."""
    for shard in range(shards):
        try:
            return shard, Lock(lock_path(run, shard))
        except AlreadyRunning:
            continue
    return None
