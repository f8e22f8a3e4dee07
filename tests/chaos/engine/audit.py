"""Checks after a fault: stored content is what its name says, and no file, socket or partial file is left over."""

import os
from collections.abc import Iterator
from pathlib import Path

from tests.s3.service.bucket_view import find_object_problem
from tests.support.deployment import Deployment
from tests.support.worker_state import open_files

READ_BYTES = 1024 * 1024
NOT_CONTENT = {"partial", "run", "unpublished"}
MAX_MORE_FILES = 5
MAX_SOCKETS = 64  # connection pools of the upstreams may keep idle connections


def audit_directory(storage: Path) -> list[str]:
    """One line for each file of the local store that is not what its name says."""
    found = []
    for path in _content(storage):
        key = str(path.relative_to(storage))
        if "/lists/" not in key and (problem := find_object_problem(key, _pieces(path))):
            found.append(f"{key}: {problem}")
    return found


def find_leaks(deployment: Deployment, before: dict[int, int]) -> list[str]:
    """Partial files, and open files and sockets that were not there before. `before`: open files by pid."""
    found = [f"a partial file is left: {path.name}" for path in deployment.partial_files()]
    for pid in deployment.dockyard.worker_pids():
        files = count_files(pid)
        if pid in before and files > before[pid] + MAX_MORE_FILES:
            found.append(f"worker {pid} has {files} files open, {before[pid]} before")
        sockets = sum(target.startswith("socket:") for target in open_files(pid).values())
        if sockets > MAX_SOCKETS:
            found.append(f"worker {pid} has {sockets} sockets")
    return found


def count_files(pid: int) -> int:
    """The number of open files of a process, without sockets: idle connections come and go."""
    return sum(not target.startswith("socket:") for target in open_files(pid).values())


def _content(storage: Path) -> Iterator[Path]:
    for directory, folders, files in os.walk(storage):
        if Path(directory) == storage:
            folders[:] = [name for name in folders if name not in NOT_CONTENT]
            continue  # the files at the top level are no content
        yield from (Path(directory, name) for name in files)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            yield piece
