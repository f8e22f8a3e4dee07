"""The scrub: what it finds and deletes, how fast it reads, and what it leaves alone."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog.testing

from dockyard import metrics
from dockyard.oci.reference import Digest
from dockyard.storage import scrub as scrub_module
from dockyard.storage.blob_files import CHUNK_BYTES
from dockyard.storage.local import LocalStore
from dockyard.storage.scrub import Scrub, ScrubStopped
from tests.support.busy_machine import EVENT_TIMEOUT_S

BODIES = [b"", b"small", os.urandom(3 * CHUNK_BYTES), os.urandom(CHUNK_BYTES + 1)]
FAST = 10**12


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """A store that has BODIES, none of which was verified since the start."""
    for body in BODIES:
        path = path_of(tmp_path, body)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        os.utime(path, (5000, 6000))
    store = LocalStore(tmp_path, "cache/", 0)
    store.create_directories()
    time.sleep(0.03)  # so old that each change of a file is seen
    return store


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loaded machine makes no test slow."""
    monkeypatch.setattr(scrub_module, "MIN_REST_FACTOR", 0.0)


def path_of(directory: Path, body: bytes) -> Path:
    """The file of a blob."""
    encoded = Digest.of(body).encoded
    return directory / "cache/blobs/sha256" / encoded[:2] / encoded


def make_scrub(store: LocalStore, bytes_per_s: int = FAST, is_turn: Callable[[], bool] = lambda: True) -> Scrub:
    """A scrub of the store."""
    return Scrub(store.blobs, bytes_per_s, is_turn)


def scrubbed_bytes() -> float:
    """How many bytes all scrubs have read."""
    return metrics.verified_bytes.labels("scrub")._value.get()


@pytest.mark.parametrize("number", range(len(BODIES)))
def test_a_damaged_blob_is_deleted_and_named(store: LocalStore, tmp_path: Path, number: int) -> None:
    """The others stay, and stay as old as they were."""
    path = path_of(tmp_path, BODIES[number])
    path.write_bytes(BODIES[number][:-1] + b"?")
    before = metrics.damaged_files.labels("blob")._value.get()
    with structlog.testing.capture_logs() as logs:
        make_scrub(store).run_once()
    assert [log["digest"] for log in logs] == [str(Digest.of(BODIES[number]))]
    assert metrics.damaged_files.labels("blob")._value.get() == before + 1
    assert not path.exists()
    for body in BODIES:
        if body is not BODIES[number]:
            status = path_of(tmp_path, body).stat()
            assert (status.st_atime, status.st_mtime) == (5000, 6000)


def test_damage_that_no_time_shows_is_found(store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk returns other bytes than were verified: a use of the blob cannot know, the scrub does."""
    make_scrub(store).run_once()
    blob = store.blobs.open(Digest.of(BODIES[2]))
    assert blob
    assert blob.is_verified
    os.close(blob.fd)
    path_of(tmp_path, BODIES[2]).write_bytes(b"x" * len(BODIES[2]))
    status = path_of(tmp_path, BODIES[2]).stat()
    fingerprint = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    store.touch_times._verified_files.add(Digest.of(BODIES[2]), fingerprint)
    make_scrub(store).run_once()
    assert not path_of(tmp_path, BODIES[2]).exists()


def test_a_blob_that_was_scrubbed_needs_no_verification_at_its_use(store: LocalStore) -> None:
    """So after a while nothing is hashed at the first use."""
    make_scrub(store).run_once()
    for body in BODIES:
        blob = store.blobs.open(Digest.of(body))
        assert blob
        assert blob.is_verified
        os.close(blob.fd)


def test_all_is_read_once_at_the_rate(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scrub rests as long as its rate demands."""
    rests: list[float] = []
    scrub = make_scrub(store, 1000)
    monkeypatch.setattr(scrub._stop, "wait", rests.append)
    before = scrubbed_bytes()
    scrub.run_once()
    assert scrubbed_bytes() - before == sum(map(len, BODIES))
    assert sum(rests) == pytest.approx(sum(map(len, BODIES)) / 1000, rel=0.01)


def test_it_rests_longer_when_reading_takes_long(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk or a processor that is busy gets little more to do."""
    monkeypatch.setattr(scrub_module, "MIN_REST_FACTOR", 4.0)
    clock = iter(range(10**6))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    rests: list[float] = []
    scrub = make_scrub(store)
    monkeypatch.setattr(scrub._stop, "wait", rests.append)
    scrub.run_once()
    assert set(rests) == {4.0}


def test_it_ends_in_the_middle_of_a_blob_when_the_server_stops(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is deleted then."""
    scrub = make_scrub(store, 1)
    monkeypatch.setattr(scrub._stop, "wait", lambda _: True)
    with pytest.raises(ScrubStopped):
        scrub.run_once()
    assert all(path_of(tmp_path, body).exists() for body in BODIES)


def test_it_waits_until_it_is_its_turn(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several workers, the one that has the first shard scrubs. After a pass there is none for a day."""
    turns = iter([False, False, True, True])
    waits: list[float] = []
    done = threading.Event()

    def is_turn() -> bool:
        return next(turns)

    scrub = make_scrub(store, FAST, is_turn)

    def wait(seconds: float) -> bool:
        if seconds >= 1:
            waits.append(round(seconds, -2) if seconds > 1000 else seconds)
        if len(waits) == 5:
            done.set()
        return done.is_set()

    monkeypatch.setattr(scrub._stop, "wait", wait)
    before = scrubbed_bytes()
    scrub.start()
    assert done.wait(EVENT_TIMEOUT_S)
    assert waits == [30.0, 60.0, 60.0, 86400.0, 86400.0]
    assert scrubbed_bytes() - before == 2 * sum(map(len, BODIES))


def test_what_is_not_a_blob_is_left_alone(store: LocalStore, tmp_path: Path) -> None:
    """Files of other names, and a cache without blobs, are no error."""
    other = tmp_path / "cache/blobs/sha256/ab/notes.txt"
    other.parent.mkdir(parents=True, exist_ok=True)
    other.write_text("keep")
    (tmp_path / "cache/blobs/README").touch()
    make_scrub(store).run_once()
    assert other.read_text() == "keep"
    make_scrub(LocalStore(tmp_path / "empty", "cache/", 0)).run_once()


def test_a_blob_that_is_evicted_while_it_is_scrubbed_is_not_damaged(store: LocalStore, tmp_path: Path) -> None:
    """It is read to its end, once."""
    before = scrubbed_bytes()

    def read_chunks(fd: int):  # type: ignore[no-untyped-def]  # noqa: ANN202
        path_of(tmp_path, BODIES[2]).unlink()
        yield memoryview(os.pread(fd, len(BODIES[2]), 0))

    with structlog.testing.capture_logs() as logs:
        store.blobs.scrub(Digest.of(BODIES[2]), read_chunks)
    assert logs == []
    assert scrubbed_bytes() - before == len(BODIES[2])


def test_what_was_not_in_memory_does_not_stay_there(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page cache is for what clients ask for: cold files are dropped from it again, hot ones stay."""
    dropped: list[int] = []
    advise = os.posix_fadvise

    def record(fd: int, start: int, length: int, advice: int) -> None:
        if advice == os.POSIX_FADV_DONTNEED:
            dropped.append(length)
        advise(fd, start, length, advice)

    path = path_of(tmp_path, BODIES[2])
    for other in BODIES:
        if other is not BODIES[2]:
            path_of(tmp_path, other).unlink()
    with path.open("rb") as file:
        os.fsync(file.fileno())
        assert file.read() == BODIES[2]
        try:
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        except OSError:
            pytest.skip("this file system does not tell what is in memory")
        monkeypatch.setattr(os, "posix_fadvise", record)
        make_scrub(store).run_once()
        assert dropped == []
        advise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        make_scrub(store).run_once()
        assert sum(dropped) == len(BODIES[2])
        with pytest.raises(BlockingIOError):
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
