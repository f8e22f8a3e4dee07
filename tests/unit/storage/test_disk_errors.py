"""Each error of the disk says what to do."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from dockyard.storage.disk_errors import describe_disk_error


def error(number: int) -> OSError:
    """The error of the system with this number."""
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.EROFS, "Read-only file system: mount the file system writable; dmesg says why it became read-only"),
        (errno.ENOTDIR, "Not a directory: set storage.directory to a directory"),
        (errno.EIO, "Input/output error: the disk fails: see dmesg"),
        (errno.EDQUOT, "Disk quota exceeded: raise the quota of this user, or lower storage.max_size"),
        (errno.EMFILE, "Too many open files: raise the limit of open files (ulimit -n, LimitNOFILE)"),
        (errno.ENAMETOOLONG, "File name too long"),
    ],
)
def test_an_error_of_the_disk_says_what_to_do(tmp_path: Path, number: int, text: str) -> None:
    """After the text of the system."""
    assert describe_disk_error(error(number), tmp_path) == text


@pytest.mark.parametrize(
    ("free_inodes", "text"), [(0, "no inodes are left (df -i)"), (100, "free disk space, or lower storage.max_size")]
)
def test_a_full_disk_says_what_it_is_full_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_inodes: int, text: str
) -> None:
    """The path need not exist yet."""
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_files=1000, f_favail=free_inodes))

    found = describe_disk_error(error(errno.ENOSPC), tmp_path / "not" / "there")

    assert found.startswith(f"No space left on device: {text}")


def test_the_owner_of_a_directory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the user of this process, who may not write there."""
    monkeypatch.setattr(os, "access", lambda _path, mode, **_: mode != os.W_OK)

    found = describe_disk_error(error(errno.EACCES), tmp_path / "run")

    assert found.startswith(f"Permission denied: {tmp_path} belongs to uid {tmp_path.stat().st_uid} (")
    assert f"and this process runs as uid {os.geteuid()} (" in found
    assert found.endswith("change its owner or mode, or set storage.directory")
