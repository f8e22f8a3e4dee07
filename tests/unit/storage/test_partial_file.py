"""The partial file: one writer, many readers, and what happens when the disk is full."""

import errno
import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from dockyard.cache.download import MAX_SMALL_BYTES
from dockyard.oci.reference import Digest
from dockyard.storage import memory_budget
from dockyard.storage import partial_file as partial_file_module
from dockyard.storage.memory_budget import MAX_WINDOW_BYTES, MemoryBudget
from dockyard.storage.partial_file import DiskSpace, NoReadersLeft, OverflowFull, PartialFile
from dockyard.storage.piece_map import PIECE_BYTES
from tests.support.busy_machine import is_within

BODY = os.urandom(300_000)
DIGEST = Digest.of(BODY)


def claim(path: Path, disk_space: DiskSpace | None = None) -> PartialFile:
    """Claim a partial file that no process has locked."""
    partial_file = PartialFile.claim(DIGEST, path, disk_space, MemoryBudget())
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
    assert PartialFile.claim(DIGEST, tmp_path / "partial", None, MemoryBudget()) is None
    partial_file.close()
    assert PartialFile.claim(DIGEST, tmp_path / "partial", None, MemoryBudget()) is not None


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

    class EvictsEnough:
        """Has evicted something by the time that it is asked."""

        def __init__(self) -> None:
            self.requested: list[int] = []
            self.counted = 0

        def count(self, size: int) -> None:
            self.counted += size

        def make_room(self, exc: OSError, size: int) -> bool:
            assert exc.errno == errno.ENOSPC
            self.requested.append(size)
            monkeypatch.undo()
            return True

    disk_space = EvictsEnough()
    partial_file = claim(tmp_path / "partial", disk_space)
    full_disk(monkeypatch)
    partial_file.append(BODY)
    assert disk_space.requested == [len(BODY)]
    assert disk_space.counted == len(BODY)
    assert not partial_file.is_overflowing
    assert (tmp_path / "partial").read_bytes() == BODY


def test_the_window_waits_for_its_readers_and_then_drops_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that every reader has read are dropped from the window for new ones."""
    small_windows(monkeypatch)
    partial_file = PartialFile.in_memory(DIGEST, MemoryBudget())
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
    small_windows(monkeypatch)
    monkeypatch.setattr(partial_file_module, "SLOW_READER_TIMEOUT_S", 0.05)
    partial_file = PartialFile.in_memory(DIGEST, MemoryBudget())
    partial_file.attach(Reader())
    partial_file.append(BODY[:600])
    partial_file.append(BODY[600:1200])
    assert partial_file.read_overflow(0, 100) == b""


def test_an_overflow_without_readers_ends_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are neither stored nor read are not downloaded."""
    small_windows(monkeypatch)
    partial_file = PartialFile.in_memory(DIGEST, MemoryBudget())
    partial_file.append(BODY[:600])
    assert not partial_file.is_abandoned
    with pytest.raises(NoReadersLeft):
        partial_file.append(BODY[600:1200])
    assert partial_file.is_abandoned


def test_a_partial_file_in_memory_continues_an_open_file(tmp_path: Path) -> None:
    """The first bytes are in another worker's file, the rest is in memory, and the digest covers both."""
    with (tmp_path / "theirs").open("w+b") as file:
        file.write(BODY[:100_000])
        file.flush()
        partial_file = PartialFile.in_memory(DIGEST, MemoryBudget(), file.fileno(), 100_000)
    partial_file.attach(Reader())
    partial_file.hash_existing_bytes()
    partial_file.append(BODY[100_000:])
    assert partial_file.has_correct_digest()
    assert hashlib.sha256(os.pread(partial_file.fd, 100_000, 0)).digest() == hashlib.sha256(BODY[:100_000]).digest()


def test_the_memory_of_a_window_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunk by chunk when the blob is verified and all have read it; the rest when the last reader has left."""
    memory = MemoryBudget(10_000_000)
    partial_file = PartialFile.in_memory(DIGEST, memory)
    reader = Reader()
    partial_file.attach(reader)
    for start in range(0, len(BODY), 100_000):
        partial_file.append(BODY[start : start + 100_000])
    assert memory.free_bytes == 10_000_000 - len(BODY)
    assert partial_file.read_overflow(0, 100) == BODY[:100]
    partial_file.finish(is_verified=True)
    reader.position = 250_000
    assert partial_file.read_overflow(250_000, 100) == BODY[250_000:250_100]
    assert memory.free_bytes == 10_000_000 - 100_000
    partial_file.detach(reader)
    partial_file.release_memory()
    assert memory.free_bytes == 10_000_000
    partial_file.release_memory()
    assert memory.free_bytes == 10_000_000


def test_all_downloads_share_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that gets no memory waits, and ends with an error when the others keep it."""
    small_windows(monkeypatch)
    monkeypatch.setattr(partial_file_module, "SLOW_READER_TIMEOUT_S", 0.05)
    memory = MemoryBudget(1500)
    first, second = (PartialFile.in_memory(DIGEST, memory) for _ in range(2))
    for partial_file in (first, second):
        partial_file.attach(Reader())
    first.append(BODY[:900])
    with pytest.raises(OverflowFull):
        second.append(BODY[:900])
    with pytest.raises(OverflowFull):
        second.wait_for_memory()
    first.release_memory()
    second.wait_for_memory()
    second.append(BODY[:900])
    assert second.read_overflow(0, 900) == BODY[:900]


def test_windows_are_smaller_when_there_are_many() -> None:
    """Sixty-four downloads at once fit into the memory, each with a blob that is verified before it is sent."""
    memory = MemoryBudget()
    first = memory.window_bytes
    for _ in range(64):
        assert memory.window_bytes >= MAX_SMALL_BYTES + 256 * 1024
        assert memory.take(memory.window_bytes)
    assert first == MAX_WINDOW_BYTES
    assert memory.free_bytes >= 0


def passed_through(memory: MemoryBudget, path: Path, size: int = len(BODY)) -> PartialFile:
    """Claim a partial file whose blob is not kept, with an upload that has begun."""
    partial_file = PartialFile.claim(DIGEST, path, None, memory)
    assert partial_file is not None
    partial_file.size = size
    partial_file.pass_through()
    reader = Reader()
    partial_file.attach(reader)
    assert partial_file.begin_upload()
    partial_file.detach(reader)
    return partial_file


def test_nothing_is_written_of_a_blob_that_is_not_kept(tmp_path: Path) -> None:
    """It is in memory from the byte on at which its size became known."""
    partial_file = claim(tmp_path / "partial")
    partial_file.append(BODY[:1000])
    partial_file.pass_through()
    partial_file.append(BODY[1000:])
    assert partial_file.overflow_start == 1000
    assert partial_file.read_overflow(1000, len(BODY)) == BODY[1000:]
    assert partial_file.has_correct_digest()
    assert (tmp_path / "partial").read_bytes() == BODY[:1000]


def test_an_upload_reads_a_blob_that_is_not_kept(tmp_path: Path) -> None:
    """All but the last byte before it is verified; the window is given back after the upload and all readers."""
    memory = MemoryBudget(10_000_000)
    partial_file = passed_through(memory, tmp_path / "partial")
    partial_file.append(BODY)
    assert partial_file.read_for_upload(0, len(BODY)) == BODY[:-1]
    partial_file.finish(is_verified=True)
    partial_file.release_memory()
    assert partial_file.read_for_upload(len(BODY) - 1, 100) == BODY[-1:]
    assert memory.free_bytes < 10_000_000
    partial_file.end_upload()
    assert memory.free_bytes == 10_000_000


def test_the_writer_waits_for_an_upload_without_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All readers have left: the upload gets all bytes all the same."""
    small_windows(monkeypatch)
    partial_file = passed_through(MemoryBudget(), tmp_path / "partial", 10_000)
    uploaded: list[bytes] = []

    def upload() -> None:
        while chunk := partial_file.read_for_upload(sum(map(len, uploaded)), 500):
            uploaded.append(chunk)

    thread = threading.Thread(target=upload)
    thread.start()
    for start in range(0, 10_000, 1000):
        partial_file.append(BODY[start : start + 1000])
    partial_file.finish(is_verified=True)
    while sum(map(len, uploaded)) < 10_000 and thread.is_alive():
        thread.join(0.01)
    partial_file.finish(is_verified=False)
    thread.join()
    assert b"".join(uploaded) == BODY[:10_000]


def test_an_upload_needs_a_reader_of_this_worker(tmp_path: Path) -> None:
    """Without one, the download ends: the worker that has the readers fetches and uploads the blob."""
    partial_file = claim(tmp_path / "partial")
    partial_file.size = len(BODY)
    partial_file.pass_through()
    partial_file.attach(Reader(2**63))
    assert not partial_file.begin_upload()


def test_readers_do_not_wait_long_for_an_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in all for MAX_UPLOAD_WAIT_S: then it loses the bytes, and fails."""
    small_windows(monkeypatch)
    monkeypatch.setattr(partial_file_module, "MAX_UPLOAD_WAIT_S", 0.2)
    partial_file = passed_through(MemoryBudget(), tmp_path / "partial")
    reader = Reader(position=2**40)  # has always read everything
    partial_file.attach(reader)
    began = time.monotonic()
    for start in range(0, 100_000, 1000):
        partial_file.append(BODY[start : start + 1000])
    waited_s = time.monotonic() - began
    assert waited_s >= 0.2
    assert is_within(waited_s, 4)
    assert partial_file.read_for_upload(0, 1000) == b""


def test_a_wrong_blob_is_not_uploaded_to_its_end(tmp_path: Path) -> None:
    """What is wrong with it is known when its last byte would be sent."""
    partial_file = passed_through(MemoryBudget(), tmp_path / "partial")
    partial_file.append(BODY)
    assert partial_file.read_for_upload(0, len(BODY)) == BODY[:-1]
    partial_file.finish(is_verified=False)
    assert partial_file.read_for_upload(len(BODY) - 1, 100) == b""


def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a window hold 1,000 bytes."""
    for limit in ("MIN_WINDOW_BYTES", "MAX_WINDOW_BYTES"):
        monkeypatch.setattr(memory_budget, limit, 1000)
    monkeypatch.setattr(partial_file_module, "MIN_WINDOW_BYTES", 1000)


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every write fail with ENOSPC."""

    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(partial_file_module.os, "pwrite", fail)


# Writing ahead

LARGE = os.urandom(5 * PIECE_BYTES + 100)


def claim_large(path: Path) -> PartialFile:
    """A partial file for LARGE that can be written ahead."""
    partial_file = PartialFile.claim(Digest.of(LARGE), path, None, MemoryBudget())
    assert partial_file is not None
    partial_file.size = len(LARGE)
    assert partial_file.begin_pieces()
    return partial_file


def write(partial_file: PartialFile, *pieces: int) -> None:
    """Write these pieces, in chunks."""
    for piece in pieces:
        start, stop = piece * PIECE_BYTES, min((piece + 1) * PIECE_BYTES, len(LARGE))
        for offset in range(start, stop, PIECE_BYTES // 4):
            assert partial_file.write_piece_bytes(LARGE[offset : min(offset + PIECE_BYTES // 4, stop)], offset)


def test_what_was_written_ahead_is_hashed_when_the_front_reaches_it(tmp_path: Path) -> None:
    """The front moves at once over what is written there, and over the pieces behind it when asked to."""
    partial_file = claim_large(tmp_path / "partial")
    write(partial_file, 3, 1, 5)
    assert partial_file.received_bytes == 0
    assert not partial_file.advance()
    assert partial_file.present_bytes == 2 * PIECE_BYTES + 100
    partial_file.write_piece_bytes(LARGE[:1000], 0)
    assert partial_file.received_bytes == 1000
    partial_file.write_piece_bytes(LARGE[1000:PIECE_BYTES], 1000)
    assert partial_file.received_bytes == PIECE_BYTES
    assert partial_file.advance()
    assert partial_file.received_bytes == 2 * PIECE_BYTES
    write(partial_file, 4, 2)
    while partial_file.advance():
        pass
    assert partial_file.received_bytes == len(LARGE)
    assert partial_file.has_correct_digest()
    partial_file.remove_map()
    assert (tmp_path / "partial").read_bytes() == LARGE


def test_the_next_writer_continues_with_the_pieces_of_a_dead_one(tmp_path: Path) -> None:
    """What was marked counts, the piece that was being written does not."""
    dead = claim_large(tmp_path / "partial")
    write(dead, 0, 3, 5)
    dead.write_piece_bytes(LARGE[PIECE_BYTES : PIECE_BYTES + 10], PIECE_BYTES)
    dead.close()
    partial_file = PartialFile.claim(Digest.of(LARGE), tmp_path / "partial", None, MemoryBudget())
    assert partial_file is not None
    assert partial_file.received_bytes == PIECE_BYTES
    assert partial_file.present_bytes == 2 * PIECE_BYTES + 100
    partial_file.size = len(LARGE)
    assert partial_file.begin_pieces()
    partial_file.hash_existing_bytes()
    write(partial_file, 1, 2, 4)
    while partial_file.advance():
        pass
    assert partial_file.has_correct_digest()


def test_what_was_forgotten_is_received_again_in_order(tmp_path: Path) -> None:
    """The bytes ahead do not count any more, and the map stays true for the next writer."""
    partial_file = claim_large(tmp_path / "partial")
    write(partial_file, 0, 2, 4)
    partial_file.forget_ahead()
    assert partial_file.present_bytes == PIECE_BYTES
    partial_file.append(LARGE[PIECE_BYTES : 2 * PIECE_BYTES + 10])
    partial_file.close()
    again = PartialFile.claim(Digest.of(LARGE), tmp_path / "partial", None, MemoryBudget())
    assert again is not None
    assert again.received_bytes == 2 * PIECE_BYTES
    again.hash_existing_bytes()
    again.append(LARGE[2 * PIECE_BYTES :])
    assert again.has_correct_digest()


def test_a_full_disk_is_no_place_for_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the map nor a piece can be written; then the blob is received in order, in memory."""
    partial_file = claim_large(tmp_path / "partial")
    full_disk(monkeypatch)
    assert not partial_file.write_piece_bytes(LARGE[PIECE_BYTES : PIECE_BYTES + 10], PIECE_BYTES)
    assert not partial_file.is_overflowing
    assert not PartialFile.in_memory(DIGEST, MemoryBudget()).begin_pieces()


def test_a_restart_forgets_all_pieces(tmp_path: Path) -> None:
    """The file is empty afterwards."""
    partial_file = claim_large(tmp_path / "partial")
    write(partial_file, 2)
    partial_file.restart()
    assert partial_file.present_bytes == 0
    assert (tmp_path / "partial").read_bytes() == b""


@pytest.mark.parametrize("size", [len(LARGE) + PIECE_BYTES, None])
def test_a_map_for_another_size_is_dropped(tmp_path: Path, size: int | None) -> None:
    """The announced size was wrong: what is in order is kept, and no byte of the map gets into the blob."""
    longer = LARGE + os.urandom(PIECE_BYTES)
    partial_file = PartialFile.claim(Digest.of(longer), tmp_path / "partial", None, MemoryBudget())
    assert partial_file is not None
    partial_file.size = len(LARGE)
    assert partial_file.begin_pieces()
    write(partial_file, 0, 3)
    partial_file.close()
    again = PartialFile.claim(Digest.of(longer), tmp_path / "partial", None, MemoryBudget())
    assert again is not None
    again.hash_existing_bytes()
    again.size = size
    for offset in range(again.received_bytes, len(longer), PIECE_BYTES // 2):
        again.append(longer[offset : offset + PIECE_BYTES // 2])
    assert again.has_correct_digest()
    again.remove_map()
    assert (tmp_path / "partial").read_bytes() == longer


def test_a_file_whose_end_cannot_be_read_is_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it has a map is unknown. Nothing stays locked or open."""

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    left = claim(tmp_path / "partial")
    left.append(BODY[:1000])
    left.close()
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as broken:
        broken.setattr(partial_file_module.PieceMap, "read", fail)
        partial_file = claim(tmp_path / "partial")
        assert partial_file.present_bytes == 0
        partial_file.append(BODY)
        assert partial_file.has_correct_digest()
        partial_file.close()
        broken.setattr(partial_file_module.os, "ftruncate", lambda *_: fail(0))
        with pytest.raises(OSError, match="Input/output error"):
            claim(tmp_path / "partial")
    assert len(os.listdir("/proc/self/fd")) == before
    assert claim(tmp_path / "partial").received_bytes == len(BODY)
