"""The partial file: one writer, many readers, and what happens when the disk is full."""

import hashlib
import os
from pathlib import Path

import pytest

from dockyard.oci.reference import Digest
from dockyard.storage import partial_file as partial_file_module
from dockyard.storage.partial_file import NoReadersLeft, PartialFile

BODY = os.urandom(300_000)
DIGEST = Digest.of(BODY)


def nothing_to_evict(_: int) -> bool:
    """Free no disk space."""
    return False


def claim(path: Path) -> PartialFile:
    """Claim a partial file that no process has locked."""
    partial_file = PartialFile.claim(DIGEST, path, nothing_to_evict)
    assert partial_file is not None
    return partial_file


class Reader:
    """A reader whose position changes only when a test sets it."""

    def __init__(self, position: int = 0) -> None:
        self.position = position


def test_bytes_are_written_to_the_file_and_hashed(tmp_path: Path) -> None:
    """All bytes that were appended are in the file, and the digest is checked over them."""
    partial_file = claim(tmp_path / "partial")
    partial_file.append(BODY[:1000])
    assert not partial_file.has_correct_digest()
    partial_file.append(BODY[1000:])
    assert partial_file.has_correct_digest()
    assert (tmp_path / "partial").read_bytes() == BODY


def test_a_partial_file_has_one_writer(tmp_path: Path) -> None:
    """A partial file that is locked cannot be claimed."""
    partial_file = claim(tmp_path / "partial")
    assert PartialFile.claim(DIGEST, tmp_path / "partial", nothing_to_evict) is None
    partial_file.close()
    assert PartialFile.claim(DIGEST, tmp_path / "partial", nothing_to_evict) is not None


def test_a_new_writer_continues_where_a_dead_one_stopped(tmp_path: Path) -> None:
    """The bytes of a dead writer are hashed once and kept."""
    dead = claim(tmp_path / "partial")
    dead.append(BODY[:200_000])
    dead.close()
    partial_file = claim(tmp_path / "partial")
    assert partial_file.received_bytes == 200_000
    partial_file.hash_existing_bytes()
    partial_file.append(BODY[200_000:])
    assert partial_file.has_correct_digest()


def test_a_discarded_file_is_deleted(tmp_path: Path) -> None:
    """Bytes with a wrong digest are not kept."""
    partial_file = claim(tmp_path / "partial")
    partial_file.append(b"wrong")
    partial_file.discard()
    assert not (tmp_path / "partial").exists()


def test_a_full_disk_moves_the_rest_to_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers read the window from the first byte that did not fit, and the digest covers all bytes."""
    partial_file = claim(tmp_path / "partial")
    partial_file.append(BODY[:100_000])
    full_disk(monkeypatch)
    partial_file.append(BODY[100_000:])
    assert partial_file.overflow_start == 100_000
    assert partial_file.read_overflow(100_000, len(BODY)) == BODY[100_000:]
    assert partial_file.has_correct_digest()


def test_a_write_is_retried_after_an_eviction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file does not overflow when disk space could be freed."""
    requested: list[int] = []

    def free_disk_space(size: int) -> bool:
        requested.append(size)
        monkeypatch.undo()
        return True

    partial_file = PartialFile.claim(DIGEST, tmp_path / "partial", free_disk_space)
    assert partial_file is not None
    full_disk(monkeypatch)
    partial_file.append(BODY)
    assert requested == [len(BODY)]
    assert not partial_file.is_overflowing
    assert (tmp_path / "partial").read_bytes() == BODY


def test_the_window_waits_for_its_readers_and_then_drops_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that every reader has read are dropped from the window for new ones."""
    monkeypatch.setattr(partial_file_module, "MAX_OVERFLOW_BYTES", 1000)
    partial_file = PartialFile.in_memory(DIGEST)
    reader = Reader()
    partial_file.attach(reader)
    partial_file.append(BODY[:600])
    reader.position = 600
    partial_file.append(BODY[600:1200])
    assert partial_file.read_overflow(0, 100) == b""
    assert partial_file.read_overflow(600, 1000) == BODY[600:1200]
    assert partial_file.has_gap


def test_a_stalled_reader_loses_the_dropped_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """An overflowing writer waits for a stalled reader for a limited time only."""
    monkeypatch.setattr(partial_file_module, "MAX_OVERFLOW_BYTES", 1000)
    monkeypatch.setattr(partial_file_module, "SLOW_READER_TIMEOUT_S", 0.05)
    partial_file = PartialFile.in_memory(DIGEST)
    partial_file.attach(Reader())
    partial_file.append(BODY[:600])
    partial_file.append(BODY[600:1200])
    assert partial_file.read_overflow(0, 100) == b""


def test_an_overflow_without_readers_ends_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are neither stored nor read are not downloaded."""
    monkeypatch.setattr(partial_file_module, "MAX_OVERFLOW_BYTES", 1000)
    partial_file = PartialFile.in_memory(DIGEST)
    partial_file.append(BODY[:600])
    with pytest.raises(NoReadersLeft):
        partial_file.append(BODY[600:1200])


def test_a_partial_file_in_memory_continues_an_open_file(tmp_path: Path) -> None:
    """The first bytes are in another worker's file, the rest is in memory, and the digest covers both."""
    with (tmp_path / "theirs").open("w+b") as file:
        file.write(BODY[:100_000])
        file.flush()
        partial_file = PartialFile.in_memory(DIGEST, file.fileno(), 100_000)
    partial_file.attach(Reader())
    partial_file.hash_existing_bytes()
    partial_file.append(BODY[100_000:])
    assert partial_file.has_correct_digest()
    assert hashlib.sha256(os.pread(partial_file.fd, 100_000, 0)).digest() == hashlib.sha256(BODY[:100_000]).digest()


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every write fail with ENOSPC."""

    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(partial_file_module.os, "pwrite", fail)
