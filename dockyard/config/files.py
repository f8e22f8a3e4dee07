"""Reading a small file that a setting names. Blocking."""

import os
import stat
from pathlib import Path

from dockyard.config.access import explain


def read_file(path: str, max_bytes: int) -> tuple[bytes, os.stat_result]:
    """Return the content of a regular file, and its status when it was opened. Raises ValueError, which says why not.

    The message quotes nothing of the file.
    """
    try:
        # A named pipe without a writer would block; after the first reading it would be empty.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise ValueError("must be a regular file")
            data = file.read(max_bytes + 1)
    except OSError as exc:
        raise ValueError(f"cannot be read: {explain(exc, Path(path))}") from exc
    if len(data) > max_bytes:
        raise ValueError(f"is larger than {max_bytes} bytes")
    return data, found
