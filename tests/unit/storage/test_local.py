"""The local store: whole objects or none, the size cap, and what a crash leaves behind."""

import errno
import fcntl
import os
import threading
import time
from pathlib import Path

import pytest
import structlog.testing

from dockyard.oci.reference import Digest, Name, Tag
from dockyard.storage.local import LocalStore, Pointer

NAME = Name.parse("docker.io/library/img")
TAG = Tag.parse("latest")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """An empty store without a size cap."""
    return make_store(tmp_path)


def make_store(directory: Path, max_size: int = 0) -> LocalStore:
    """Create a store in a directory."""
    store = LocalStore(directory, "cache/", max_size)
    store.create_directories()
    return store


def add_blob(store: LocalStore, body: bytes) -> Digest:
    """Add a blob to the store as a download does."""
    digest = Digest.of(body)
    partial_file = store.claim_partial_file(digest)
    assert partial_file is not None
    partial_file.append(body)
    assert store.commit(partial_file)
    return digest


def read(store: LocalStore, digest: Digest) -> bytes | None:
    """Read a whole blob."""
    stored = store.blobs.open(digest)
    if stored is None:
        return None
    with open(stored.fd, "rb") as file:
        body = file.read()
    assert len(body) == stored.size
    return body


def path_of(store: LocalStore, digest: Digest) -> Path:
    """Return the path of a blob, as documented."""
    return store.directory / "cache/blobs" / digest.algorithm / digest.encoded[:2] / digest.encoded


def test_a_committed_blob_is_read_back(store: LocalStore) -> None:
    """A committed blob is at its path, and there is no partial file any more."""
    digest = add_blob(store, b"layer" * 1000)
    assert read(store, digest) == b"layer" * 1000
    assert path_of(store, digest).exists()
    assert list((store.directory / "partial").iterdir()) == []


def test_an_unknown_blob_is_a_miss(store: LocalStore) -> None:
    """An absent blob is not an error."""
    assert store.blobs.open(Digest.of(b"never seen")) is None


def test_the_empty_blob_is_a_blob(store: LocalStore) -> None:
    """A file of zero bytes has the digest of the empty blob."""
    assert read(store, add_blob(store, b"")) == b""


def test_the_least_recently_used_blob_is_evicted(tmp_path: Path) -> None:
    """A blob that was read recently is kept, an older one is evicted."""
    store = make_store(tmp_path, max_size=10_000)
    digests = [add_blob(store, bytes([number]) * 3000) for number in range(4)]
    for age, digest in enumerate(digests):
        path = path_of(store, digest)
        os.utime(path, (time.time() - 1000 + age, path.stat().st_mtime))
    assert read(store, digests[0]) is not None
    store.size_cap.enforce_if_due()
    assert [path_of(store, digest).exists() for digest in digests] == [True, False, True, True]


def test_a_due_eviction_waits_for_another_process_that_evicts(tmp_path: Path) -> None:
    """When it returns, the store is within its cap."""
    store = make_store(tmp_path, max_size=10_000)
    for number in range(6):
        add_blob(store, bytes([number]) * 3000)
    with open(tmp_path / "run" / "evict.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=store.size_cap.enforce_if_due)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
    thread.join(10)
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()) == 9_000


def test_a_use_in_the_future_counts_as_old_and_is_corrected(tmp_path: Path) -> None:
    """Files from when the clock was wrong are evicted first, unless they are used again."""
    store = make_store(tmp_path, max_size=10_000)
    digests = [add_blob(store, bytes([number]) * 3000) for number in range(4)]
    for digest in digests[:2]:
        os.utime(path_of(store, digest), (time.time() + 5 * 365 * 86400, time.time()))
    assert read(store, digests[0]) is not None
    store.size_cap.enforce_if_due()
    assert [path_of(store, digest).exists() for digest in digests] == [True, False, True, True]


def refuse(*_: object, **__: object) -> None:
    """Fail as the operating system does when a file belongs to another user."""
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def test_times_that_cannot_be_set_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blobs are read and kept all the same, without a warning."""
    digest = add_blob(make_store(tmp_path), b"a blob")
    os.utime(path_of(make_store(tmp_path), digest), (0, 0))
    monkeypatch.setattr(os, "utime", refuse)
    store = make_store(tmp_path)
    with structlog.testing.capture_logs() as logs:
        assert read(store, digest) == b"a blob"
        assert read(store, add_blob(store, b"another blob")) == b"another blob"
        store.write_manifest(NAME, digest, b"{}")
        assert store.read_manifest(NAME, digest) == b"{}"
        assert store.move_pointer(NAME, TAG, None, Pointer(digest, time.time()))
        assert store.read_pointer(NAME, TAG)
    assert logs == []


def test_a_media_type_is_stored_with_a_manifest(store: LocalStore) -> None:
    """If one is given; it is that of the last time that the manifest was stored."""
    digest = Digest.of(b"{}")
    assert store.read_media_type(NAME, digest) is None
    for media_type in (None, "a/b", "c/d", None):
        store.write_manifest(NAME, digest, b"{}", media_type)
        assert (store.read_manifest(NAME, digest), store.read_media_type(NAME, digest)) == (b"{}", media_type)
    store.write_manifest(NAME, digest, b"{}", "a/b")
    assert store.read_media_type(Name.parse("other"), digest) is None


def test_the_media_type_is_stored_before_the_manifest(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that another process never reads the manifest without its type."""
    digest = Digest.of(b"{}")
    written: list[str] = []

    def fail_at_manifest(path: Path, content: bytes, _: Path) -> None:
        written.append(content.decode())
        if content == b"{}":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("dockyard.storage.local.write_atomically", fail_at_manifest)
    store.write_manifest(NAME, digest, b"{}", "a/b")
    assert written == ["a/b", "{}"]


def test_no_cap_keeps_everything(store: LocalStore) -> None:
    """0 means no limit."""
    digest = add_blob(store, b"x" * 100_000)
    store.size_cap.enforce_if_due()
    assert read(store, digest) is not None


def test_an_evicted_blob_can_still_be_read_by_a_reader_that_has_it_open(tmp_path: Path) -> None:
    """Eviction does not interrupt a reader."""
    store = make_store(tmp_path, max_size=1000)
    digest = add_blob(store, b"x" * 5000)
    stored = store.blobs.open(digest)
    assert stored is not None
    store.size_cap.enforce_if_due()
    assert not path_of(store, digest).exists()
    assert os.pread(stored.fd, 5000, 0) == b"x" * 5000
    os.close(stored.fd)


def test_partial_files_of_dead_writers_are_deleted_and_others_are_kept(store: LocalStore) -> None:
    """A partial file that is not locked is deleted; one that is being written is not."""
    dead, alive = Digest.of(b"dead"), Digest.of(b"alive")
    partial_file = store.claim_partial_file(dead)
    assert partial_file is not None
    partial_file.append(b"de")
    partial_file.close()
    writing = store.claim_partial_file(alive)
    assert writing is not None
    assert store.sweep_partial_files() == 1
    assert [path.name for path in (store.directory / "partial").iterdir()] == [str(alive).replace(":", "-")]


@pytest.mark.parametrize(
    ("is_published", "left", "kept"), [(False, b"a blob", True), (False, b"a blo", False), (True, b"a blob", False)]
)
def test_a_complete_partial_file_that_is_not_published_is_committed(
    tmp_path: Path, left: bytes, *, is_published: bool, kept: bool
) -> None:
    """Its process was killed before it could do that; an incomplete one, or one that is published, is deleted."""
    digest = Digest.of(b"a blob")
    store = LocalStore(tmp_path, "cache/", 0, is_protected=lambda _: not is_published)
    store.create_directories()
    partial_file = store.claim_partial_file(digest)
    assert partial_file is not None
    partial_file.append(left)
    partial_file.close()
    assert store.sweep_partial_files() == (0 if kept else 1)
    assert list((tmp_path / "partial").iterdir()) == []
    stored = store.blobs.open(digest)
    assert (stored is not None) == kept
    if stored:
        assert os.pread(stored.fd, 100, 0) == b"a blob"
        os.close(stored.fd)


def test_a_pointer_is_text_at_its_key(store: LocalStore) -> None:
    """A tag pointer is the digest as text, in a file named by its key."""
    digest = Digest.of(b"manifest")
    assert store.move_pointer(NAME, TAG, None, Pointer(digest, time.time()))
    path = store.directory / "cache/manifests/docker.io/library/img/tags/latest"
    assert path.read_text() == str(digest)
    pointer = store.read_pointer(NAME, TAG)
    assert pointer is not None
    assert pointer.digest == digest
    assert abs(pointer.checked_at - time.time()) < 60


def test_a_pointer_that_was_changed_meanwhile_is_not_moved(store: LocalStore) -> None:
    """A pointer is moved only if its digest and the time of its check are those that were read."""
    first, second, third = (Pointer(Digest.of(body), time.time()) for body in (b"1", b"2", b"3"))
    assert store.move_pointer(NAME, TAG, None, first)
    read = store.read_pointer(NAME, TAG)
    assert store.move_pointer(NAME, TAG, read, second)
    assert not store.move_pointer(NAME, TAG, read, third)
    assert not store.move_pointer(NAME, TAG, None, third)
    now = store.read_pointer(NAME, TAG)
    assert now is not None
    assert now.digest == second.digest
    assert store.move_pointer(NAME, TAG, now, Pointer(first.digest, first.checked_at + 1))
    assert not store.move_pointer(NAME, TAG, read, third)  # the same digest, another time


@pytest.mark.parametrize("text", ["", "latest", "sha256:short", "md5:" + "0" * 32, "\xff"])
def test_a_pointer_that_is_not_a_digest_is_ignored(store: LocalStore, text: str) -> None:
    """A damaged pointer is treated as absent."""
    assert store.move_pointer(NAME, TAG, None, Pointer(Digest.of(b"manifest"), time.time()))
    (store.directory / "cache/manifests/docker.io/library/img/tags/latest").write_text(text, "latin-1")
    assert store.read_pointer(NAME, TAG) is None


def test_a_directory_at_the_path_of_a_pointer_is_a_miss(store: LocalStore) -> None:
    """A repository may have the name of a tag's path: both can still be pulled."""
    store.write_manifest(Name.parse("docker.io/library/img/tags/latest"), Digest.of(b"m"), b"m")
    assert store.move_pointer(NAME, TAG, None, Pointer(Digest.of(b"m"), time.time()))
    assert store.read_pointer(NAME, TAG) is None
    assert store.read_manifest(Name.parse("docker.io/library/img/tags/latest"), Digest.of(b"m")) == b"m"


def test_a_directory_that_cannot_be_written_gives_a_partial_file_in_memory(tmp_path: Path) -> None:
    """A blob can be served although no partial file can be created."""
    store = LocalStore(tmp_path / "nowhere", "cache/", 0)
    partial_file = store.claim_partial_file(Digest.of(b"blob"))
    assert partial_file is not None
    partial_file.append(b"blob")
    assert partial_file.has_correct_digest()
    assert partial_file.read_overflow(0, 10) == b"blob"
    assert not store.commit(partial_file)
