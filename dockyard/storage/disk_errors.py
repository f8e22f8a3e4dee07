"""What an error of the disk means and what to do, for the log. Blocking."""

import errno
import os
from pathlib import Path

from dockyard.config.access import explain

_CURES = {
    errno.EROFS: "mount the file system writable; dmesg says why it became read-only",
    errno.EACCES: "change its owner or mode, or set storage.directory",
    errno.EPERM: "change its owner or mode, or set storage.directory",
    errno.ENOTDIR: "set storage.directory to a directory",
    errno.EEXIST: "set storage.directory to a directory",
    errno.EIO: "the disk fails: see dmesg",
    errno.EMFILE: "raise the limit of open files (ulimit -n, LimitNOFILE)",
    errno.ENFILE: "raise the limit of open files of this machine (sysctl fs.file-max)",
    errno.EDQUOT: "raise the quota of this user, or lower storage.max_size",
}


def describe_disk_error(exc: OSError, path: Path) -> str:
    """The error of the system, with the owner of what refuses, and what to do."""
    reason = explain(exc, path, is_writing=True)
    cure = _describe_full_disk(path) if exc.errno == errno.ENOSPC else _CURES.get(exc.errno or 0, "")
    return f"{reason}: {cure}" if cure else reason


def _describe_full_disk(path: Path) -> str:
    """What it is that the disk has none of: blocks or inodes."""
    try:
        found = os.statvfs(next(there for there in (path, *path.parents) if there.exists()))
    except OSError:
        return "free disk space"
    if found.f_files and not found.f_favail:
        return "no inodes are left (df -i): delete small files, or use a file system with more"
    return "free disk space, or lower storage.max_size"
