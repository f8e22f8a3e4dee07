"""A directory for the counters of one server, in memory.

They are files that all its processes map: on a disk that is full they would end a process. The directory is locked by
the server for as long as it or a worker of it lives, so that the next server can tell those of the dead, and deletes
them.
"""

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from dockyard.workers.shard_lock import AlreadyRunning, Lock

MEMORY = "/dev/shm"  # noqa: S108  a directory of our own is made there
PREFIX = "dockyard-"
YOUNG_S = 60.0


def claim_counts() -> Path:
    """Make the directory of this server, and delete those of dead ones. Raises OSError."""
    root = Path(MEMORY if os.access(MEMORY, os.W_OK) else tempfile.gettempdir())
    for old in root.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, AlreadyRunning):  # somebody else's, or alive
            if time.time() - old.stat().st_mtime > YOUNG_S:
                Lock(old / "lock").release()
                shutil.rmtree(old)
    own = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
    Lock(own / "lock")
    return own
