"""File systems of their own for a test. Mounting needs root."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(directory: Path, options: str) -> Iterator[Path]:
    """Mount a tmpfs with these options at a new directory; skip the test where that is not possible."""
    directory.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        reason = f"cannot mount a tmpfs: {done.stderr.decode().strip()}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    try:
        yield directory
    finally:
        while os.path.ismount(directory):
            subprocess.run(["umount", "--lazy", directory], check=True)


def make_read_only(directory: Path) -> None:
    """Make a mounted directory read-only for everybody who opens a file by its path from now on.

    The file system itself cannot be made read-only while a server has files in it open for writing.
    """
    subprocess.run(["mount", "-o", "bind,ro", directory, directory], check=True)


def use_all_inodes(directory: Path) -> list[Path]:
    """Create empty files until no inode is left; return them."""
    files: list[Path] = []
    directory.mkdir(exist_ok=True)
    try:
        while True:
            file = directory / f"file-{len(files)}"
            file.touch()
            files.append(file)
    except OSError:
        return files
