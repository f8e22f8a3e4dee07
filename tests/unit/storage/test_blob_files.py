"""The files of blobs: when they are verified, and what happens to damaged ones."""

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog.testing

from dockyard.config.types import Verify
from dockyard.oci.reference import Digest
from dockyard.storage import file_times
from dockyard.storage.blob_files import MAX_SMALL_BYTES, BlobFiles, StoredBlob, read_in_chunks
from dockyard.storage.items import BlobItem
from dockyard.storage.local import LocalStore
from dockyard.storage.verified_files import CLOCK_RESOLUTION_NS, Fingerprint, VerifiedFiles

SMALL, LARGE = b"small blob", b"large blob " * 150_000
BODIES = pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])


class Server:
    """The local stores of one server. Each has the table of verified files of this server."""

    def __init__(self, directory: Path, verify: Verify = "start") -> None:
        self.directory = directory
        self.verify = verify
        self.verified_files = VerifiedFiles()

    def worker(self) -> LocalStore:
        store = LocalStore(self.directory, "cache/", 0, self.verify, self.verified_files)
        store.create_directories()
        return store

    def path(self, body: bytes) -> Path:
        digest = Digest.of(body)
        return self.directory / "cache/blobs" / digest.algorithm / digest.encoded[:2] / digest.encoded


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """A server whose store has SMALL and LARGE, and that was restarted since they were stored."""
    store = Server(tmp_path).worker()
    for body in (SMALL, LARGE):
        add_blob(store, body)
    time.sleep(2 * CLOCK_RESOLUTION_NS / 1e9)  # files are old enough that each change of them is seen
    return Server(tmp_path)


def add_blob(store: LocalStore, body: bytes) -> None:
    """Add a blob as a download does."""
    partial_file = store.claim_partial_file(Digest.of(body))
    assert partial_file
    partial_file.append(body)
    assert store.commit(partial_file)


def read(files: BlobFiles, body: bytes) -> bytes | None:
    """Read a whole blob as it is sent: verified."""
    blob = files.open_verified(Digest.of(body))
    if blob is None:
        return None
    assert blob.is_verified
    with open(blob.fd, "rb") as file:
        content = file.read()
    assert len(content) == blob.size
    return content


def flip(path: Path, at: int = 5) -> None:
    """Flip a bit in place, and set the modification time back."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def replace_by(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Delete the file, and make something else at its path."""

    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def make_full_directory(path: Path) -> None:
    """Make a directory with a file in it."""
    path.mkdir()
    (path / "file").touch()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped bit": flip,
    "flipped last bit": lambda path: flip(path, path.stat().st_size - 1),
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "truncated to a half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "extended": lambda path: os.truncate(path, path.stat().st_size + 1),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "another blob": lambda path: shutil.copyfile(path.parents[1] / "other", path),
    "another blob, renamed": lambda path: os.rename(path.parents[1] / "other", path),
    "link to another blob": replace_by(lambda path: path.symlink_to(path.parents[1] / "other")),
    "link to nothing": replace_by(lambda path: path.symlink_to("nothing")),
    "link to itself": replace_by(lambda path: path.symlink_to(path)),
    "empty directory": replace_by(Path.mkdir),
    "directory": replace_by(make_full_directory),
    "named pipe": replace_by(os.mkfifo),
    "deleted": Path.unlink,
}


@BODIES
@pytest.mark.parametrize("is_running", [False, True], ids=["after a start", "while it runs"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_blob_is_a_miss_and_is_stored_again(
    server: Server, damage: str, body: bytes, *, is_running: bool
) -> None:
    """Whatever is at the path of a blob: it is never read as the blob, and does not keep the blob from being stored."""
    store = server.worker()
    path = server.path(body)
    if is_running:
        assert read(store.blobs, body) == body
    (path.parents[1] / "other").write_bytes(body[::-1])
    DAMAGES[damage](path)
    with structlog.testing.capture_logs() as logs:
        assert read(store.blobs, body) is None
    assert [log["digest"] for log in logs if "damaged" in log["event"]] == (
        [] if damage in {"deleted", "link to nothing", "link to itself"} else [str(Digest.of(body))]
    )
    assert read(store.blobs, body) is None
    add_blob(store, body)
    assert read(store.blobs, body) == body
    assert path.is_file()
    assert not path.is_symlink()


def test_a_small_blob_is_verified_while_it_is_opened(server: Server) -> None:
    """A larger one is not: the caller decides when and where that is done."""
    files = server.worker().blobs
    for body, is_verified in ((SMALL, True), (LARGE, False)):
        assert (len(body) <= MAX_SMALL_BYTES) == is_verified
        blob = files.open(Digest.of(body))
        assert blob
        assert blob.is_verified == is_verified
        os.close(blob.fd)


@BODIES
def test_a_blob_is_hashed_once_for_all_workers_after_each_start(
    server: Server, body: bytes, hashed_bytes: Callable[[], float]
) -> None:
    """Each start of the server verifies it again; another worker, or a restarted one, does not."""
    for _ in range(3):
        assert read(server.worker().blobs, body) == body
    assert hashed_bytes() == len(body)
    assert read(Server(server.directory).worker().blobs, body) == body
    assert hashed_bytes() == len(body)


@pytest.mark.usefixtures("slow_machine")
@BODIES
def test_a_blob_that_was_just_stored_is_not_hashed(
    tmp_path: Path, body: bytes, hashed_bytes: Callable[[], float]
) -> None:
    """The download has hashed it."""
    server = Server(tmp_path)
    add_blob(server.worker(), body)
    assert read(server.worker().blobs, body) == body
    assert hashed_bytes() == 0


@pytest.mark.usefixtures("slow_machine")
@BODIES
def test_times_that_are_set_here_do_not_cause_a_verification(
    server: Server, body: bytes, hashed_bytes: Callable[[], float]
) -> None:
    """The access time is set at each use after a while, the modification time when the bucket has a copy."""
    stores = [server.worker(), server.worker()]
    assert read(stores[0].blobs, body) == body
    for store in stores * 2:
        os.utime(server.path(body), (time.time() - file_times.RECORD_INTERVAL_S - 1, server.path(body).stat().st_mtime))
        server.verified_files.add(Digest.of(body), stamp(server.path(body)))  # as if it had been set long ago
        assert read(store.blobs, body) == body
        assert time.time() - server.path(body).stat().st_atime < 10
        store.touch_times.mark_published(BlobItem(Digest.of(body)), 5000.0)
        assert store.touch_times.claim_touch(BlobItem(Digest.of(body)), 3000.0)
        assert read(store.blobs, body) == body
    assert hashed_bytes() == len(body)


def stamp(path: Path) -> tuple[int, int, int, int]:
    """The fingerprint of a file."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def test_a_time_that_is_set_here_does_not_hide_a_change(server: Server) -> None:
    """The bucket gets a copy of a file that was damaged before: the file is not taken as verified."""
    store = server.worker()
    assert read(store.blobs, LARGE) == LARGE
    flip(server.path(LARGE))
    store.touch_times.mark_published(BlobItem(Digest.of(LARGE)))
    assert read(store.blobs, LARGE) is None


@BODIES
def test_times_that_others_set_cause_a_verification(
    server: Server, body: bytes, hashed_bytes: Callable[[], float]
) -> None:
    """It costs time, and the blob stays."""
    files = server.worker().blobs
    assert read(files, body) == body
    os.utime(server.path(body), (0, 0))
    assert read(files, body) == body
    assert hashed_bytes() == 2 * len(body)


def test_a_file_that_changed_just_now_is_verified_again(
    server: Server, monkeypatch: pytest.MonkeyPatch, hashed_bytes: Callable[[], float]
) -> None:
    """On a kernel with a coarse clock, a second change would have the same change time."""
    files = server.worker().blobs
    monkeypatch.setattr("dockyard.storage.verified_files.CLOCK_RESOLUTION_NS", 10**12)
    assert read(files, LARGE) == LARGE
    assert read(files, LARGE) == LARGE
    monkeypatch.undo()
    assert read(files, LARGE) == LARGE
    assert read(files, LARGE) == LARGE
    assert hashed_bytes() == 3 * len(LARGE)


@BODIES
def test_always_hashes_at_every_use(server: Server, body: bytes, hashed_bytes: Callable[[], float]) -> None:
    """Also directly after the blob was stored."""
    files = Server(server.directory, "always").worker().blobs
    for _ in range(2):
        assert read(files, body) == body
    assert hashed_bytes() == 2 * len(body)
    blob = files.open_verified(Digest.of(body))
    assert blob
    assert not files.is_current(blob)
    os.close(blob.fd)


@BODIES
def test_never_hashes_nothing(server: Server, body: bytes, hashed_bytes: Callable[[], float]) -> None:
    """Only an empty file is known not to be the blob."""
    files = Server(server.directory, "never").worker().blobs
    flip(server.path(body))
    assert read(files, body) not in (None, body)
    assert hashed_bytes() == 0
    os.truncate(server.path(body), 0)
    assert read(files, body) is None
    assert not server.path(body).exists()


def test_the_empty_blob_is_verified(tmp_path: Path) -> None:
    """A file of zero bytes has the digest of the empty blob."""
    server = Server(tmp_path)
    add_blob(server.worker(), b"")
    for verify in ("start", "always", "never"):
        assert read(Server(tmp_path, verify).worker().blobs, b"") == b""


def test_a_file_that_cannot_be_read_is_a_miss_and_stays(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk error may pass. The blob is fetched, and its file replaced."""

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    files = server.worker().blobs
    monkeypatch.setattr(os, "preadv", fail)
    assert read(files, SMALL) is None
    assert read(files, LARGE) is None
    monkeypatch.undo()
    assert read(files, SMALL) == SMALL
    assert read(files, LARGE) == LARGE


@pytest.mark.parametrize("verify", ["start", "always", "never"])
@BODIES
def test_a_file_that_could_not_be_read_is_hashed_at_its_next_use(
    server: Server, verify: Verify, body: bytes, hashed_bytes: Callable[[], float]
) -> None:
    """By each worker that opens it, until it was hashed; also if nothing else is verified."""
    server = Server(server.directory, verify)
    files, other = server.worker().blobs, server.worker().blobs
    assert read(files, body) == body
    blob = files.open_verified(Digest.of(body))
    assert blob
    files.report_unreadable(blob, OSError(errno.EIO, "Input/output error"))
    assert not files.is_current(blob)
    assert not other.is_current(blob)
    os.close(blob.fd)
    hashed_bytes()
    assert read(other, body) == body
    assert hashed_bytes() == len(body)
    assert read(files, body) == body
    assert hashed_bytes() == (len(body) if verify == "always" else 0)


def test_a_file_that_the_scrub_cannot_read_is_hashed_at_its_next_use(
    server: Server, hashed_bytes: Callable[[], float]
) -> None:
    """The scrub finds it first: the next client gets a blob that is fetched, not one that is cut."""

    def fail(fd: int) -> Iterator[memoryview]:
        yield from list(read_in_chunks(fd))[:1]
        raise OSError(errno.EIO, "Input/output error")

    files = server.worker().blobs
    assert read(files, LARGE) == LARGE
    files.scrub(Digest.of(LARGE), fail)
    assert server.path(LARGE).exists()
    hashed_bytes()
    assert read(files, LARGE) == LARGE
    assert hashed_bytes() == len(LARGE)


def test_a_file_that_is_written_while_it_is_hashed_is_hashed_again(server: Server) -> None:
    """The bytes that were read before the change prove nothing."""
    files = server.worker().blobs
    calls = 0

    def read_chunks(fd: int) -> Iterator[memoryview]:
        nonlocal calls
        calls += 1
        yield from read_in_chunks(fd)
        if calls == 1:
            flip(server.path(LARGE))

    blob = files.open(Digest.of(LARGE))
    assert blob
    assert files.verify(blob, read_chunks) is None
    assert calls == 2
    assert not server.path(LARGE).exists()
    os.close(blob.fd)


def test_a_file_that_replaced_the_damaged_one_is_not_deleted(server: Server) -> None:
    """Another worker has fetched the blob while this one found its old file damaged."""
    store = server.worker()
    flip(server.path(LARGE))
    blob = store.blobs.open(Digest.of(LARGE))
    assert blob
    add_blob(store, LARGE)
    assert store.blobs.verify(blob) is None
    assert read(store.blobs, LARGE) == LARGE
    os.close(blob.fd)


@pytest.mark.usefixtures("slow_machine")
def test_a_blob_that_is_being_read_is_unchanged_until_its_file_is(server: Server) -> None:
    """What Dockyard itself does to a file does not count: setting times, replacing it, deleting it."""
    store = server.worker()

    def opened() -> StoredBlob:
        blob = store.blobs.open_verified(Digest.of(LARGE))
        assert blob
        return blob

    blobs = [opened()]
    assert store.blobs.is_unchanged(blobs[0])
    assert store.blobs.is_current(blobs[0])
    store.touch_times.mark_published(BlobItem(Digest.of(LARGE)))
    assert store.blobs.is_unchanged(blobs[0])
    blobs.append(opened())
    flip(server.path(LARGE))
    assert not store.blobs.is_unchanged(blobs[1])
    assert not store.blobs.is_current(blobs[1])
    add_blob(store, LARGE)
    blobs.append(opened())
    server.path(LARGE).unlink()
    assert store.blobs.is_unchanged(blobs[2])
    assert not store.blobs.is_current(blobs[2])
    for blob in blobs:
        os.close(blob.fd)


def test_no_descriptor_stays_open(server: Server) -> None:
    """Neither after a hit, nor after a miss, nor after damage of any kind."""
    store = server.worker()
    before = len(os.listdir("/proc/self/fd"))
    for damage in DAMAGES.values():
        for body in (SMALL, LARGE):
            server.path(body).unlink(missing_ok=True)
            add_blob(store, body)
            (server.path(body).parents[1] / "other").write_bytes(body[::-1])
            read(store.blobs, body)
            damage(server.path(body))
            read(store.blobs, body)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("is_late", [False, True], ids=["at once", "later"])
def test_a_file_that_is_changed_before_it_is_recorded_is_verified(
    server: Server, monkeypatch: pytest.MonkeyPatch, *, is_late: bool
) -> None:
    """It was renamed to its path, and another program was faster than this one."""
    store = server.worker()
    server.path(LARGE).unlink()
    add = VerifiedFiles.add_renamed

    def add_later(self: VerifiedFiles, digest: Digest, fd: int, before: Fingerprint, began_ns: int) -> None:
        if is_late:
            time.sleep(0.002)
            flip(server.path(LARGE))
        add(self, digest, fd, before, began_ns)

    monkeypatch.setattr(VerifiedFiles, "add_renamed", add_later)
    add_blob(store, LARGE)
    if not is_late:
        time.sleep(CLOCK_RESOLUTION_NS / 1e9)
        flip(server.path(LARGE))
    assert read(store.blobs, LARGE) is None
