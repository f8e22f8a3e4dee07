"""The directory for the metrics: one for each server; those of servers that are gone are deleted."""

import os
import time
from pathlib import Path

import pytest

from dockyard.workers import metrics_directory as directory_module
from dockyard.workers.metrics_directory import create_metrics_directory
from dockyard.workers.shard_lock import Lock


def test_directories_of_servers_that_are_gone_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories that are neither locked nor new are deleted; others stay."""
    monkeypatch.setattr(directory_module, "MEMORY", str(tmp_path))
    for name in ("dockyard-gone", "dockyard-running", "dockyard-new", "other"):
        (tmp_path / name).mkdir()
    lock = Lock(tmp_path / "dockyard-running" / "lock")
    for name in ("dockyard-gone", "dockyard-running", "other"):
        os.utime(tmp_path / name, (time.time() - 1000,) * 2)
    own = create_metrics_directory()
    assert {path.name for path in tmp_path.iterdir()} == {"dockyard-running", "dockyard-new", "other", own.name}
    lock.release()


def test_without_memory_the_temporary_directory_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics also work on a machine without a file system in memory."""
    monkeypatch.setattr(directory_module, "MEMORY", str(tmp_path / "nowhere"))
    monkeypatch.setattr(directory_module.tempfile, "tempdir", str(tmp_path))
    assert create_metrics_directory().parent == tmp_path
