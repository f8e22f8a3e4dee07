"""Checks after a fault: stored content is what its name says, and no file, socket or partial file is left over."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.s3.service.bucket_view import find_object_problem
from tests.support.deployment import Deployment
from tests.support.worker_state import open_files

READ_BYTES = 1024 * 1024
NOT_CONTENT = {"partial", "run", "unpublished"}
MAX_MORE_FILES = 5
NOT_COUNTED = ("socket:", "/dev/shm/dockyard-")
MAX_SOCKETS = 64  # connection pools of the upstreams may keep idle connections


def audit_directory(storage: Path) -> list[str]:
    """One line for each file of the local store that is not what its name says."""
    found = []
    for path in _content(storage):
        key = str(path.relative_to(storage))
        if "/lists/" not in key and (problem := find_object_problem(key, _pieces(path))):
            found.append(f"{key}: {problem}")
    return found


def find_leaks(deployment: Deployment, before: Mapping[int, Counter[str]]) -> list[str]:
    """Partial files, and open files and sockets that were not there before. `before`: open files by pid."""
    found = [f"a partial file is left: {path.name}" for path in deployment.partial_files()]
    for pid in deployment.dockyard.worker_pids():
        files = list_files(pid)
        if pid in before and files.total() > before[pid].total() + MAX_MORE_FILES:
            more = ", ".join(sorted((files - before[pid]).elements()))
            found.append(f"worker {pid} has {files.total()} files open, {before[pid].total()} before; more: {more}")
        sockets = sum(target.startswith("socket:") for target in open_files(pid).values())
        if sockets > MAX_SOCKETS:
            found.append(f"worker {pid} has {sockets} sockets")
    return found


def list_files(pid: int) -> Counter[str]:
    """The open files of a process: not sockets, which come and go, nor files of metrics, opened at the first use."""
    return Counter(target for target in open_files(pid).values() if not target.startswith(NOT_COUNTED))


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
