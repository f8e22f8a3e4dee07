"""The local store: whole objects or none, the size cap, and what a crash leaves behind."""

import errno
import fcntl
import os
import time
from pathlib import Path

import pytest
import structlog.testing

from dockyard.oci.reference import Digest, Name, Tag
from dockyard.storage import atomic_write
from dockyard.storage.atomic_write import move_synced
from dockyard.storage.items import BlobItem, Item, ManifestItem
from dockyard.storage.local import LocalStore, Pointer
from dockyard.storage.partial_file import PartialFile

NAME = Name.parse("docker.io/library/img")
TAG = Tag.parse("latest")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """An empty store without a size cap."""
    return make_store(tmp_path)


def make_store(directory: Path, unpublished: list[Item] | None = None) -> LocalStore:
    """Create a store without a size cap in a directory."""
    store = LocalStore(directory, "cache/", 0, unpublished=unpublished)
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
    return store.directories.root / "cache/blobs" / digest.algorithm / digest.encoded[:2] / digest.encoded


def test_a_committed_blob_is_not_locked(store: LocalStore) -> None:
    """Readers of the download keep copies of the descriptor. Setting the times of the blob must not wait for them."""
    digest = Digest.of(b"blob")
    partial_file = store.claim_partial_file(digest)
    assert isinstance(partial_file, PartialFile)
    reader = os.dup(partial_file.fd)
    partial_file.append(b"blob")
    assert store.commit(partial_file)
    with path_of(store, digest).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(reader)


def test_a_partial_file_that_is_given_up_is_not_locked(store: LocalStore) -> None:
    """The next attempt may be another worker's, although readers still have the file open."""
    digest = Digest.of(b"blob")
    partial_file = store.claim_partial_file(digest)
    assert isinstance(partial_file, PartialFile)
    reader = os.dup(partial_file.fd)
    partial_file.append(b"bl")
    partial_file.close()
    again = store.claim_partial_file(digest)
    assert isinstance(again, PartialFile)
    assert again.received_bytes == 2
    again.close()
    os.close(reader)


def test_a_committed_blob_is_read_back(store: LocalStore) -> None:
    """A committed blob is at its path, and there is no partial file any more."""
    digest = add_blob(store, b"layer" * 1000)
    assert read(store, digest) == b"layer" * 1000
    assert path_of(store, digest).exists()
    assert list((store.directories.root / "partial").iterdir()) == []


def test_an_unknown_blob_is_a_miss(store: LocalStore) -> None:
    """An absent blob is not an error."""
    assert store.blobs.open(Digest.of(b"never seen")) is None


def test_the_empty_blob_is_a_blob(store: LocalStore) -> None:
    """A file of zero bytes has the digest of the empty blob."""
    assert read(store, add_blob(store, b"")) == b""


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


def test_nobody_sees_a_copy_of_the_bucket_younger_than_it_is(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest and a pointer have their time before they are at their paths: a touch that is due is not missed."""
    ages = []

    def record(source: Path, target: Path) -> None:
        ages.append(time.time() - source.stat().st_mtime)
        assert store.sweep_partial_files() == 0  # the file looks as if a dead process had left it
        move_synced(source, target)

    monkeypatch.setattr(atomic_write, "move_synced", record)
    store.write_manifest(NAME, digest := Digest.of(b"{}"), b"{}", bucket_age_s=5000.0)
    assert store.move_pointer(NAME, TAG, None, Pointer(digest, time.time() - 5000.0))
    assert min(ages) >= 5000.0
    assert len(ages) == 2
    assert store.touch_times.claim_touch(ManifestItem(NAME, digest), 4000.0)


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

    def fail_at_manifest(path: Path, content: bytes, *_: object) -> None:
        written.append(content.decode())
        if content == b"{}":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("dockyard.storage.local.write_atomically", fail_at_manifest)
    store.write_manifest(NAME, digest, b"{}", "a/b")
    assert written == ["a/b", "{}"]


def leave(store: LocalStore, digest: Digest, content: bytes) -> Path:
    """Leave a partial file as a process that was killed does."""
    partial_file = store.claim_partial_file(digest)
    assert isinstance(partial_file, PartialFile)
    partial_file.append(content)
    partial_file.close()
    assert partial_file.path
    return partial_file.path


def test_partial_files_are_kept_for_a_day_and_then_deleted(store: LocalStore) -> None:
    """One that can be continued stays; empty, old, and temporary files go; one that is being written stays."""
    recent, old, empty, alive = (Digest.of(name) for name in (b"recent", b"old", b"empty", b"alive"))
    paths = [leave(store, recent, b"rec"), leave(store, old, b"ol"), leave(store, empty, b"")]
    os.utime(paths[1], (time.time() - 2 * 86400,) * 2)
    writing = store.claim_partial_file(alive)
    assert isinstance(writing, PartialFile)
    assert writing.path
    os.utime(writing.path, (time.time() - 2 * 86400,) * 2)
    partial = store.directories.partial
    temporary = [partial / "new.tmp", partial / "dead.tmp", partial / "future.tmp"]
    for path in temporary:
        path.touch()
    os.utime(temporary[1], (time.time() - 3600,) * 2)
    os.utime(temporary[2], (time.time() + 86400,) * 2)
    (partial / "of another program").touch()
    assert store.sweep_partial_files() == 4
    assert set(partial.iterdir()) == {paths[0], writing.path, temporary[0], partial / "of another program"}


def test_a_partial_file_of_a_dead_process_is_continued(tmp_path: Path) -> None:
    """The next process, also after a restart, gets the bytes that are there."""
    digest = Digest.of(b"a blob")
    leave(make_store(tmp_path), digest, b"a b")
    store = make_store(tmp_path)
    store.sweep_partial_files()
    partial_file = store.claim_partial_file(digest)
    assert isinstance(partial_file, PartialFile)
    assert partial_file.received_bytes == 3
    partial_file.hash_existing_bytes()
    partial_file.append(b"lob")
    assert partial_file.has_correct_digest()
    assert store.commit(partial_file)
    assert read(store, digest) == b"a blob"


@pytest.mark.parametrize(
    ("is_published", "left", "is_committed"),
    [(False, b"a blob", True), (False, b"a blo", False), (True, b"a blob", False)],
)
def test_a_complete_partial_file_that_is_not_published_is_committed(
    tmp_path: Path, left: bytes, *, is_published: bool, is_committed: bool
) -> None:
    """Its process was killed before it could do that. Another one waits for a request of the blob."""
    digest = Digest.of(b"a blob")
    store = make_store(tmp_path, unpublished=[] if is_published else [BlobItem(digest)])
    path = leave(store, digest, left)
    assert store.sweep_partial_files() == 0
    assert path.exists() != is_committed
    assert read(store, digest) == (b"a blob" if is_committed else None)


def test_a_complete_partial_file_that_cannot_be_read_is_deleted_when_it_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody requests the blob, which would receive it again."""

    def fail(_: PartialFile) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(PartialFile, "hash_existing_bytes", fail)
    digest = Digest.of(b"a blob")
    store = make_store(tmp_path, unpublished=[BlobItem(digest)])
    path = leave(store, digest, b"a blob")
    assert store.sweep_partial_files() == 0
    assert path.exists()
    os.utime(path, (0, 0))
    assert store.sweep_partial_files() == 1
    assert not path.exists()


def test_a_pointer_is_text_at_its_key(store: LocalStore) -> None:
    """A tag pointer is the digest as text, in a file named by its key."""
    digest = Digest.of(b"manifest")
    assert store.move_pointer(NAME, TAG, None, Pointer(digest, time.time()))
    path = store.directories.root / "cache/manifests/docker.io/library/img/tags/latest"
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
    (store.directories.root / "cache/manifests/docker.io/library/img/tags/latest").unlink()
    assert store.move_pointer(NAME, TAG, read, third)  # evicted: there is nothing newer


@pytest.mark.parametrize("text", ["", "latest", "sha256:short", "md5:" + "0" * 32, "\xff"])
def test_a_pointer_that_is_not_a_digest_is_ignored(store: LocalStore, text: str) -> None:
    """A damaged pointer is treated as absent."""
    assert store.move_pointer(NAME, TAG, None, Pointer(Digest.of(b"manifest"), time.time()))
    (store.directories.root / "cache/manifests/docker.io/library/img/tags/latest").write_text(text, "latin-1")
    assert store.read_pointer(NAME, TAG) is None


def test_a_directory_at_the_path_of_a_pointer_is_a_miss(store: LocalStore) -> None:
    """A repository may have the name of a tag's path: both can still be pulled."""
    store.write_manifest(Name.parse("docker.io/library/img/tags/latest"), Digest.of(b"m"), b"m")
    assert store.move_pointer(NAME, TAG, None, Pointer(Digest.of(b"m"), time.time()))
    assert store.read_pointer(NAME, TAG) is None
    assert store.read_manifest(Name.parse("docker.io/library/img/tags/latest"), Digest.of(b"m")) == b"m"


def test_a_directory_that_cannot_be_written_gives_a_partial_file_in_memory(tmp_path: Path) -> None:
    """A blob can be served although no partial file can be created."""
    (tmp_path / "file").touch()
    store = LocalStore(tmp_path / "file" / "storage", "cache/", 0)
    partial_file = store.claim_partial_file(Digest.of(b"blob"))
    assert partial_file is not None
    partial_file.append(b"blob")
    assert partial_file.has_correct_digest()
    assert partial_file.read_overflow(0, 10) == b"blob"
    assert not store.commit(partial_file)


@pytest.mark.parametrize("is_swapped", [False, True])
def test_a_list_that_was_changed_is_absent(store: LocalStore, *, is_swapped: bool) -> None:
    """Each bit counts, although the result may still be a list; so does the place."""
    store.write_list(NAME, None, b'["latest","v1"]')
    (path,) = (store.directories.root / "cache/lists").rglob("_tags")
    found = store.read_list(NAME, None)
    assert found
    assert found.body == b'["latest","v1"]'
    content = path.read_bytes()
    if is_swapped:
        store.write_list(Name.parse("docker.io/library/other"), None, b'["v2"]')
        path.write_bytes((store.directories.root / "cache/lists/docker.io/library/other/_tags").read_bytes())
        assert store.read_list(NAME, None) is None
    for at in range(len(content) if not is_swapped else 0):
        path.write_bytes(content[:at] + bytes([content[at] ^ 2]) + content[at + 1 :])
        assert store.read_list(NAME, None) is None


def test_a_list_without_a_checksum_is_absent(store: LocalStore) -> None:
    """It is from a former version: that is no damage."""
    store.write_list(NAME, None, b"[]")
    (path,) = (store.directories.root / "cache/lists").rglob("_tags")
    path.write_bytes(b'["v1"]')
    with structlog.testing.capture_logs() as logs:
        assert store.read_list(NAME, None) is None
    assert logs == []
