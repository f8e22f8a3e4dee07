"""Why a file or directory cannot be used, for the operator: to whom it belongs, and which user asks. Blocking."""

import errno
import grp
import os
import pwd
from pathlib import Path

_DENIED = {errno.EACCES, errno.EPERM}


def explain(exc: OSError, path: Path, *, is_writing: bool = False) -> str:
    """The system's error; for a lack of permission also the owner of what refuses, and the user of this process."""
    reason = exc.strerror or str(exc)
    refusing = _find_refusing(path, os.W_OK if is_writing else os.R_OK) if exc.errno in _DENIED else None
    if refusing is None:
        return reason
    found = refusing.stat()
    owner = f"{describe_user(found.st_uid)} and {_group(found.st_gid)}, mode {found.st_mode & 0o7777:04o}"
    return f"{reason}: {refusing} belongs to {owner}, and this process runs as {describe_user(os.geteuid())}"


def _find_refusing(path: Path, mode: int) -> Path | None:
    """The first directory on the way that may not be entered, else what may not be read or written; None if unknown."""
    absolute = path.absolute()
    for directory in reversed(absolute.parents):
        if not directory.exists():
            break
        if not os.access(directory, os.X_OK, effective_ids=True):
            return directory
    nearest = next((there for there in (absolute, *absolute.parents) if there.exists()), None)
    return nearest if nearest and not os.access(nearest, mode, effective_ids=True) else None


def describe_user(uid: int) -> str:
    """`uid 0 (root)`, or without the name if the user has none."""
    try:
        return f"uid {uid} ({pwd.getpwuid(uid).pw_name})"
    except KeyError:
        return f"uid {uid}"


def _group(gid: int) -> str:
    try:
        return f"gid {gid} ({grp.getgrgid(gid).gr_name})"
    except KeyError:
        return f"gid {gid}"
