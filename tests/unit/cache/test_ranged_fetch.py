"""Receiving a blob in ranges: what is requested once, in which order, and what happens when a connection fails."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from dockyard.cache import ranged_fetch as ranged_fetch_module
from dockyard.cache.blob_sources import BlobSources, RangesUnsupported
from dockyard.cache.ranged_fetch import CannotWriteAhead, Ended, RangedFetch
from dockyard.cache.retries import Retries
from dockyard.errors import BlobUnknown, RegistryError, Unavailable, UpstreamTimeout
from dockyard.oci.ranges import ByteRange
from dockyard.oci.reference import Digest
from dockyard.storage.memory_budget import MemoryBudget
from dockyard.storage.partial_file import NoReadersLeft, PartialFile
from dockyard.storage.piece_map import PIECE_BYTES
from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.deployment import eventually

BODY = os.urandom(12 * PIECE_BYTES + 1000)
DIGEST = Digest.of(BODY)
SEGMENT_BYTES = 2 * PIECE_BYTES


class Body:
    """The bytes of one range. It waits for `gate` before each byte from `hold` on, and breaks at the byte `cut`."""

    def __init__(self, sources: "Sources", start: int, stop: int) -> None:
        self.size = sources.size
        self.start = start
        self._at, self._stop = start, stop
        self._sources = sources
        self.was_closed = False
        self._cut = sources.cuts.pop(start, None)

    def read(self, amount: int) -> bytes:
        end = min(self._at + amount, self._stop)
        if self._sources.holds(self._at):
            assert self._sources.gate.wait(EVENT_TIMEOUT_S)
            if self._sources.is_aborted:
                raise Unavailable("aborted")
        if self._cut is not None:
            end = min(end, self._cut)
            if self._at >= self._cut:
                self._sources.before_cut()
                raise self._sources.cut_error
        chunk = BODY[self._at : end]
        self._at = end
        with self._sources.lock:
            self._sources.sent += len(chunk)
        return chunk

    def close(self) -> None:
        self.was_closed = True

    def abort(self) -> None:
        self._sources.is_aborted = True
        self._sources.gate.set()


class Sources:
    """A source that records what was requested. `holds(position)`: whether a read there waits for `gate`."""

    digest = DIGEST
    details = None

    def __init__(self) -> None:
        self.size = len(BODY)
        self.ranges: list[tuple[int, int]] = []
        self.bodies: list[Body] = []
        self.cuts: dict[int, int] = {}
        self.before_cut: Callable[[], object] = lambda: None
        self.cut_error: RegistryError = Unavailable("cut")
        self.errors: list[Exception] = []
        self.holds: Callable[[int], bool] = lambda _: False
        self.gate = threading.Event()
        self.is_aborted = False
        self.sent = 0
        self.lock = threading.Lock()
        self.opened = threading.Semaphore(0)

    def open_range(self, start: int, stop: int) -> Body:
        with self.lock:
            self.ranges.append((start, stop))
            self.opened.release()
            if self.errors:
                raise self.errors.pop(0)
            body = Body(self, start, stop)
            self.bodies.append(body)
        return body


@pytest.fixture
def sources() -> Sources:
    """A source of BODY."""
    return Sources()


@pytest.fixture
def partial_file(tmp_path: Path) -> PartialFile:
    """A partial file that can be written ahead."""
    partial_file = PartialFile.claim(DIGEST, tmp_path / "partial", None, MemoryBudget())
    assert partial_file
    partial_file.size = len(BODY)
    assert partial_file.begin_pieces()
    return partial_file


class Reader:
    """A reader that has read nothing yet."""

    position = 0


def make(partial_file: PartialFile, sources: Sources, **more: Any) -> RangedFetch:
    """A fetch over two connections in the background."""
    options: dict[str, Any] = {
        "retries": Retries(),
        "connections": 2,
        "segment_bytes": SEGMENT_BYTES,
        "is_delayed": False,
        "on_progress": lambda: None,
        "on_advance": lambda: None,
    } | more
    return RangedFetch(partial_file, cast("BlobSources", sources), **options)


class Running:
    """A fetch that runs in a thread; `error` is what `run` has raised."""

    def __init__(self, fetch: RangedFetch) -> None:
        self.error: BaseException | None = None
        self._fetch = fetch
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._fetch.run()
        except BaseException as exc:  # noqa: BLE001  looked at by the test
            self.error = exc

    def join(self) -> None:
        self._thread.join(EVENT_TIMEOUT_S)
        assert not self._thread.is_alive()


def assert_complete(partial_file: PartialFile, path: Path) -> None:
    """The file has the right bytes."""
    assert partial_file.has_correct_digest()
    partial_file.remove_map()
    assert (path / "partial").read_bytes() == BODY


def test_each_byte_is_requested_once_and_in_order(sources: Sources, partial_file: PartialFile, tmp_path: Path) -> None:
    """The segments cover the blob without gaps, and begin in order."""
    make(partial_file, sources).run()
    assert sorted(sources.ranges) == sources.ranges
    assert [start for start, _ in sources.ranges] == [0, *(stop for _, stop in sources.ranges[:-1])]
    assert sources.ranges[-1][1] == len(BODY)
    assert all(stop - start <= SEGMENT_BYTES for start, stop in sources.ranges)
    assert sources.sent == len(BODY)
    assert all(body.was_closed for body in sources.bodies)
    assert_complete(partial_file, tmp_path)


def test_the_window_limits_what_is_received_ahead(sources: Sources, partial_file: PartialFile) -> None:
    """While the first segment hangs, the other connection goes no further than the window."""
    sources.holds = lambda position: position < SEGMENT_BYTES
    running = Running(make(partial_file, sources))
    for _ in range(4):
        assert sources.opened.acquire(timeout=EVENT_TIMEOUT_S)
    assert not sources.opened.acquire(timeout=0.3)
    assert max(stop for _, stop in sources.ranges) == 4 * SEGMENT_BYTES
    sources.gate.set()
    running.join()
    assert running.error is None


def test_what_is_requested_comes_first(sources: Sources, partial_file: PartialFile, tmp_path: Path) -> None:
    """A request is one range of whole pieces, and is not received again in the background."""
    fetch = make(partial_file, sources, is_delayed=True)
    fetch.request(ByteRange(len(BODY) - 50, len(BODY)))
    fetch.request(ByteRange(5 * PIECE_BYTES + 3, 6 * PIECE_BYTES + 3))
    fetch.run()
    assert set(sources.ranges[:2]) == {(12 * PIECE_BYTES, len(BODY)), (5 * PIECE_BYTES, 7 * PIECE_BYTES)}
    assert sources.sent == len(BODY)
    assert_complete(partial_file, tmp_path)


def test_without_a_background_only_what_is_requested_is_received(
    sources: Sources, partial_file: PartialFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fetch ends when nobody requests anything, and when everything was requested."""
    monkeypatch.setattr(ranged_fetch_module, "IDLE_S", 0.1)
    monkeypatch.setattr(ranged_fetch_module, "_POLL_S", 0.05)
    fetch = make(partial_file, sources, connections=0)
    fetch.request(ByteRange(7 * PIECE_BYTES, 8 * PIECE_BYTES))
    with pytest.raises(NoReadersLeft):
        fetch.run()
    assert sources.ranges == [(7 * PIECE_BYTES, 8 * PIECE_BYTES)]
    partial_file.attach(Reader())
    fetch = make(partial_file, sources, connections=0)
    fetch.request(ByteRange(0, len(BODY)))
    fetch.run()
    assert sources.sent == len(BODY)
    assert partial_file.has_correct_digest()


def test_a_fetch_without_a_background_can_get_one(sources: Sources, partial_file: PartialFile) -> None:
    """When somebody wants the whole blob."""
    fetch = make(partial_file, sources, connections=0)
    running = Running(fetch)
    fetch.request_all(2)
    running.join()
    assert running.error is None
    assert partial_file.has_correct_digest()


def test_a_range_that_breaks_off_is_requested_from_the_byte_reached(
    sources: Sources, partial_file: PartialFile, tmp_path: Path
) -> None:
    """Also in the middle of a piece."""
    sources.cuts = {0: 300_000, SEGMENT_BYTES: SEGMENT_BYTES + PIECE_BYTES + 5}
    make(partial_file, sources).run()
    assert (300_000, SEGMENT_BYTES) in sources.ranges
    assert (SEGMENT_BYTES + PIECE_BYTES + 5, 2 * SEGMENT_BYTES) in sources.ranges
    assert sources.sent == len(BODY)
    assert_complete(partial_file, tmp_path)


@pytest.mark.parametrize("error", [BlobUnknown("gone"), RangesUnsupported("200"), ValueError("a bug")])
def test_an_error_that_does_not_pass_ends_the_fetch(
    sources: Sources, partial_file: PartialFile, error: Exception
) -> None:
    """It is raised where the fetch was started."""
    sources.errors = [error]
    with pytest.raises(type(error)):
        make(partial_file, sources).run()


def test_attempts_without_progress_end_the_fetch(
    sources: Sources, partial_file: PartialFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a few of them, with short waits."""
    monkeypatch.setattr("dockyard.cache.retries.BACKOFF_S", (0.01, 0.02))
    sources.errors = [Unavailable("down") for _ in range(100)]
    with pytest.raises(RegistryError):
        make(partial_file, sources).run()
    assert len(sources.ranges) < 10


def test_connections_that_break_at_the_same_time_count_as_one_attempt(
    sources: Sources, partial_file: PartialFile, tmp_path: Path
) -> None:
    """Each of many ranges breaks off before a piece is complete, as when the upstream is restarted."""
    pieces = (2, 5, 7, 9)
    sources.cuts = {piece * PIECE_BYTES: piece * PIECE_BYTES + 1000 for piece in pieces}
    all_wait = threading.Barrier(len(pieces))
    sources.before_cut = all_wait.wait
    fetch = make(partial_file, sources, connections=0)
    for piece in pieces:
        fetch.request(ByteRange(piece * PIECE_BYTES, piece * PIECE_BYTES + 1))
    running = Running(fetch)
    present = partial_file.pieces
    assert present
    eventually(lambda: running.error or all(present.has(piece) for piece in pieces), "the pieces were received")
    fetch.request_all(2)
    running.join()
    assert running.error is None
    assert sources.sent == len(BODY)
    assert_complete(partial_file, tmp_path)


def test_a_part_of_a_piece_counts_as_received(
    sources: Sources, partial_file: PartialFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timeout is tried again if something was received, although no piece is complete."""
    monkeypatch.setattr("dockyard.cache.retries.BACKOFF_S", (0.01, 0.02))
    sources.cuts = {5 * PIECE_BYTES: 5 * PIECE_BYTES + 1000}
    sources.cut_error = UpstreamTimeout("stalls")
    fetch = make(partial_file, sources, connections=0)
    fetch.request(ByteRange(5 * PIECE_BYTES, 5 * PIECE_BYTES + 1))
    running = Running(fetch)
    present = partial_file.pieces
    assert present
    eventually(lambda: running.error or present.has(5), "the piece was received")
    fetch.request_all(2)
    running.join()
    assert running.error is None
    assert_complete(partial_file, tmp_path)


def test_a_full_disk_ends_the_fetch(
    sources: Sources, partial_file: PartialFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blob must be received in order then."""
    monkeypatch.setattr(partial_file, "write_piece_bytes", lambda *_: False)
    with pytest.raises(CannotWriteAhead):
        make(partial_file, sources).run()


def test_nothing_is_written_after_the_end(sources: Sources, partial_file: PartialFile) -> None:
    """A fetch that is ended from outside stops all connections."""
    sources.holds = lambda position: position % SEGMENT_BYTES >= PIECE_BYTES
    fetch = make(partial_file, sources)
    running = Running(fetch)
    for _ in range(2):
        assert sources.opened.acquire(timeout=EVENT_TIMEOUT_S)
    fetch.end()
    running.join()
    assert isinstance(running.error, Ended)
    written = partial_file.written_bytes
    sources.gate.set()
    for thread in threading.enumerate():
        if thread.name == "range":
            thread.join(EVENT_TIMEOUT_S)
    assert partial_file.written_bytes == written


def test_a_body_that_is_open_is_read_for_one_segment(
    sources: Sources, partial_file: PartialFile, tmp_path: Path
) -> None:
    """The first connection continues with the response that has told the size."""
    body = Body(sources, 0, len(BODY))
    make(partial_file, sources).run(cast("Any", body))
    assert body.was_closed
    assert min(sources.ranges) == (SEGMENT_BYTES, 2 * SEGMENT_BYTES)
    assert sources.sent == len(BODY)
    assert_complete(partial_file, tmp_path)


def test_many_readers_request_each_piece_once(sources: Sources, partial_file: PartialFile) -> None:
    """However often the same pieces are requested, and in whatever order."""
    fetch = make(partial_file, sources)
    for piece in (12, 3, 3, 9, 12, 0, 7, 3, 9):
        fetch.request(ByteRange(piece * PIECE_BYTES + 10, piece * PIECE_BYTES + 11))
    fetch.run()
    assert sources.sent == len(BODY)
    assert partial_file.has_correct_digest()
