"""Finds blocking work on the event loop: storage functions that run in its thread, and files that it opens or changes.

Installed in the processes of a Dockyard, it writes a line to a file for each finding. `report_file` is that file, and
`storage` the directory of the local store.
"""

import asyncio
import functools
import inspect
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.support.paths import ROOT

# What only works in memory, or on a descriptor that is open already.
IN_MEMORY = {
    "BlobFiles.is_current",
    "BlobFiles.is_unchanged",
    "BlobFiles.is_unreadable",
    "BlobFiles.report_unreadable",
    "LocalStore.key",
    "VerifiedFiles.add_unreadable",
    "VerifiedFiles.has",
    "VerifiedFiles.is_unreadable",
    "PartialFile.attach",
    "PartialFile.close",
    "PartialFile.detach",
    "PartialFile.read_overflow",
    "PartialFile.in_memory",
    "PartialFile.release_memory",
    "Publisher.touch_if_due",  # looks the item up, and hands it to a thread
    "Publisher.start",  # starts a thread
    "Publisher.stop",
}
AUDITED = {
    "open",
    "os.listdir",
    "os.scandir",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.utime",
    "os.truncate",
}


def environment(directory: Path, storage: Path) -> tuple[dict[str, str], Path]:
    """The environment of a guarded Dockyard, and the file with the findings."""
    report_file = directory / "blocking.txt"
    report_file.touch()
    code = "from tests.support import event_loop_guard\n\n"
    code += f"event_loop_guard.install({str(report_file)!r}, {str(storage)!r})\n"
    (directory / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": f"{directory}:{ROOT}"}, report_file


def install(report_file: str, storage: str) -> None:
    """Guard this process and its children."""
    fd = os.open(report_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    reporting = threading.local()

    def report(what: str) -> None:
        if getattr(reporting, "is_active", False):
            return
        reporting.is_active = True
        try:
            frames = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_stack()[:-2]]
            os.write(fd, f"{what} < {' < '.join(reversed(frames[-8:]))}\n".encode())
        finally:
            reporting.is_active = False

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event in AUDITED and asyncio._get_running_loop() is not None:
            path = args[0] if args else ""
            if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(storage):
                report(f"{event} {os.fspath(path)}")

    sys.addaudithook(audit)
    guard_storage(report)


def guard_storage(report: Callable[[str], object]) -> None:
    """Wrap the functions of the stores so that a call on the event loop is reported."""
    from dockyard.s3 import outbox, publisher, store  # noqa: PLC0415  only in the guarded process
    from dockyard.storage import (  # noqa: PLC0415
        blob_files,
        directories,
        eviction,
        local,
        partial_file,
        touch_times,
        verified_files,
    )

    modules = (blob_files, directories, eviction, local, partial_file, touch_times, verified_files)
    for module in (*modules, outbox, publisher, store):
        _guard_module(module, report)


def _guard_module(module: ModuleType, report: Callable[[str], object]) -> None:
    for cls in [
        value for value in vars(module).values() if inspect.isclass(value) and value.__module__ == module.__name__
    ]:
        for name, member in list(vars(cls).items()):
            label = f"{cls.__name__}.{name}"
            if name.startswith("_") or label in IN_MEMORY or issubclass(cls, Exception):
                continue
            if isinstance(member, classmethod):
                setattr(cls, name, classmethod(_guarded(member.__func__, label, report)))
            elif inspect.isfunction(member):
                setattr(cls, name, _guarded(member, label, report))


def _guarded(function: Callable[..., Any], label: str, report: Callable[[str], object]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if asyncio._get_running_loop() is not None:
            report(label)
        return function(*args, **kwargs)

    return call
