"""The directory of the counters: one for each server, and none of the dead."""

import os
import time
from pathlib import Path

import pytest

from dockyard.workers import metrics_directory as counts
from dockyard.workers.metrics_directory import claim_counts
from dockyard.workers.shard_lock import Lock


def test_directories_of_the_dead_go_and_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody has locked and is not new is deleted."""
    monkeypatch.setattr(counts, "MEMORY", str(tmp_path))
    for name in ("dockyard-dead", "dockyard-alive", "dockyard-new", "other"):
        (tmp_path / name).mkdir()
    lock = Lock(tmp_path / "dockyard-alive" / "lock")
    for name in ("dockyard-dead", "dockyard-alive", "other"):
        os.utime(tmp_path / name, (time.time() - 1000,) * 2)
    own = claim_counts()
    assert {path.name for path in tmp_path.iterdir()} == {"dockyard-alive", "dockyard-new", "other", own.name}
    lock.release()


def test_without_memory_the_temporary_directory_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a file system in memory counts all the same."""
    monkeypatch.setattr(counts, "MEMORY", str(tmp_path / "nowhere"))
    monkeypatch.setattr(counts.tempfile, "tempdir", str(tmp_path))
    assert claim_counts().parent == tmp_path
