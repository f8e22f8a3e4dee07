"""The directory for the metrics of one server, in memory.

Metrics are files that all processes of the server map; on a full disk, a write to a mapped file ends in SIGBUS. The
directory is locked for as long as a process of the server runs, so that the next server can find the directories of
servers that are gone, and delete them.
"""

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from dockyard.workers.shard_lock import AlreadyRunning, Lock

MEMORY = "/dev/shm"  # noqa: S108  mkdtemp creates a private directory there
PREFIX = "dockyard-"
MIN_AGE_S = 60.0  # a younger one may belong to a server that has not locked it yet


def create_metrics_directory() -> Path:
    """Create the directory of this server, and delete those of servers that are gone. Raises OSError."""
    root = Path(MEMORY if os.access(MEMORY, os.W_OK) else tempfile.gettempdir())
    for old in root.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, AlreadyRunning):  # of another user, or in use
            if time.time() - old.stat().st_mtime > MIN_AGE_S:
                Lock(old / "lock").release()
                shutil.rmtree(old)
    own = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
    with contextlib.suppress(OSError):  # without locks, no server deletes the directories of others
        Lock(own / "lock")
    return own
