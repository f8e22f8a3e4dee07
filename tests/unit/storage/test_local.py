"""The local store: whole objects or none, the size cap, and what a crash leaves behind."""

import fcntl
import os
import threading
import time
from pathlib import Path

import pytest

from dockyard.oci.reference import Digest, Name, Tag
from dockyard.storage.local import LocalStore, Pointer

NAME = Name.parse("docker.io/library/img")
TAG = Tag.parse("latest")


@pytest.fixture
def tier(tmp_path: Path) -> LocalStore:
    """An empty tier without a cap."""
    return make(tmp_path)


def make(directory: Path, max_size: int = 0, unverified_before: float = 0.0) -> LocalStore:
    """A tier over a directory."""
    tier = LocalStore(directory, "cache/", max_size, unverified_before)
    tier.create_directories()
    return tier


def keep(tier: LocalStore, body: bytes) -> Digest:
    """Put a blob into the tier the way a fill does."""
    digest = Digest.of(body)
    partial_file = tier.claim_partial_file(digest)
    assert partial_file is not None
    partial_file.append(body)
    assert tier.commit(partial_file)
    return digest


def read(tier: LocalStore, digest: Digest) -> bytes | None:
    """All of a stored blob."""
    stored = tier.open_blob(digest)
    if stored is None:
        return None
    with open(stored.fd, "rb") as file:
        body = file.read()
    assert len(body) == stored.size
    return body


def path_of(tier: LocalStore, digest: Digest) -> Path:
    """Where the design says that a blob is."""
    return tier.directory / "cache/blobs" / digest.algorithm / digest.encoded[:2] / digest.encoded


def test_a_kept_blob_is_read_back(tier: LocalStore) -> None:
    """What was verified and kept is in its place, and the partial file is gone."""
    digest = keep(tier, b"layer" * 1000)
    assert read(tier, digest) == b"layer" * 1000
    assert path_of(tier, digest).exists()
    assert list((tier.directory / "partial").iterdir()) == []


def test_an_unknown_blob_is_a_miss(tier: LocalStore) -> None:
    """Nothing there is not an error."""
    assert tier.open_blob(Digest.of(b"never seen")) is None


def test_the_empty_blob_is_a_blob(tier: LocalStore) -> None:
    """Zero bytes are right for the digest of nothing."""
    assert read(tier, keep(tier, b"")) == b""


def test_an_emptied_file_is_a_miss(tier: LocalStore) -> None:
    """A file of zero bytes for any other digest is damage, and is deleted."""
    digest = keep(tier, b"layer")
    path_of(tier, digest).write_bytes(b"")
    assert tier.open_blob(digest) is None
    assert not path_of(tier, digest).exists()


def test_after_a_crash_a_damaged_blob_is_a_miss(tmp_path: Path) -> None:
    """Blobs from before an unclean stop are hashed before their first use."""
    tier = make(tmp_path)
    good, bad = keep(tier, b"good"), keep(tier, b"bad")
    path_of(tier, bad).write_bytes(b"BAD")
    restarted = make(tmp_path, unverified_before=time.time() + 60)
    assert read(restarted, good) == b"good"
    assert read(restarted, bad) is None


def test_a_blob_is_verified_once(tmp_path: Path) -> None:
    """Verifying changes the file's change time, which tells every worker that it was done."""
    digest = keep(make(tmp_path), b"good")
    before = os.stat(path_of(make(tmp_path), digest)).st_ctime
    assert read(make(tmp_path, unverified_before=before + 0.001), digest) == b"good"
    assert os.stat(path_of(make(tmp_path), digest)).st_ctime > before


def test_the_cap_drops_what_was_used_longest_ago(tmp_path: Path) -> None:
    """A blob that was read lately stays, an older one goes."""
    tier = make(tmp_path, max_size=10_000)
    digests = [keep(tier, bytes([number]) * 3000) for number in range(4)]
    for age, digest in enumerate(digests):
        path = path_of(tier, digest)
        os.utime(path, (time.time() - 1000 + age, path.stat().st_mtime))
    assert read(tier, digests[0]) is not None
    tier.size_cap.enforce()
    assert [path_of(tier, digest).exists() for digest in digests] == [True, False, True, True]


def test_who_brings_more_waits_while_another_process_evicts(tmp_path: Path) -> None:
    """The cap is kept by the time that the next download begins."""
    tier = make(tmp_path, max_size=10_000)
    for number in range(6):
        keep(tier, bytes([number]) * 3000)
    with open(tmp_path / "run" / "evict.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=tier.size_cap.enforce_if_due)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
    thread.join(10)
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()) == 9_000


def test_no_cap_keeps_everything(tier: LocalStore) -> None:
    """0 means no limit."""
    digest = keep(tier, b"x" * 100_000)
    tier.size_cap.enforce()
    assert read(tier, digest) is not None


def test_an_evicted_blob_is_read_to_its_end_by_who_has_it_open(tmp_path: Path) -> None:
    """Eviction never cuts a reader."""
    tier = make(tmp_path, max_size=1000)
    digest = keep(tier, b"x" * 5000)
    stored = tier.open_blob(digest)
    assert stored is not None
    tier.size_cap.enforce()
    assert not path_of(tier, digest).exists()
    assert os.pread(stored.fd, 5000, 0) == b"x" * 5000
    os.close(stored.fd)


def test_partial_files_of_the_dead_are_swept_and_others_stay(tier: LocalStore) -> None:
    """A partial file that nobody has locked is deleted; one that is being written is not."""
    dead, alive = Digest.of(b"dead"), Digest.of(b"alive")
    partial_file = tier.claim_partial_file(dead)
    assert partial_file is not None
    partial_file.append(b"de")
    partial_file.close()
    writing = tier.claim_partial_file(alive)
    assert writing is not None
    assert tier.sweep_partial_files() == 1
    assert [path.name for path in (tier.directory / "partial").iterdir()] == [str(alive).replace(":", "-")]


def test_a_pointer_is_text_at_its_key(tier: LocalStore) -> None:
    """A tag pointer is the digest as text, where the layout says."""
    digest = Digest.of(b"manifest")
    assert tier.move_pointer(NAME, TAG, None, Pointer(digest, time.time()))
    path = tier.directory / "cache/manifests/docker.io/library/img/tags/latest"
    assert path.read_text() == str(digest)
    pointer = tier.read_pointer(NAME, TAG)
    assert pointer is not None
    assert pointer.digest == digest
    assert abs(pointer.checked_at - time.time()) < 60


def test_a_pointer_that_another_moved_is_left_alone(tier: LocalStore) -> None:
    """What was read before must still be there, to the time of its check."""
    first, second, third = (Pointer(Digest.of(body), time.time()) for body in (b"1", b"2", b"3"))
    assert tier.move_pointer(NAME, TAG, None, first)
    read = tier.read_pointer(NAME, TAG)
    assert tier.move_pointer(NAME, TAG, read, second)
    assert not tier.move_pointer(NAME, TAG, read, third)
    assert not tier.move_pointer(NAME, TAG, None, third)
    now = tier.read_pointer(NAME, TAG)
    assert now is not None
    assert now.digest == second.digest
    assert tier.move_pointer(NAME, TAG, now, Pointer(first.digest, first.checked_at + 1))
    assert not tier.move_pointer(NAME, TAG, read, third)  # the same digest, another time


@pytest.mark.parametrize("text", ["", "latest", "sha256:short", "md5:" + "0" * 32, "\xff"])
def test_a_pointer_that_is_no_digest_is_ignored(tier: LocalStore, text: str) -> None:
    """Damage reads as not there."""
    assert tier.move_pointer(NAME, TAG, None, Pointer(Digest.of(b"manifest"), time.time()))
    (tier.directory / "cache/manifests/docker.io/library/img/tags/latest").write_text(text, "latin-1")
    assert tier.read_pointer(NAME, TAG) is None


def test_a_directory_in_the_place_of_a_tag_is_a_miss(tier: LocalStore) -> None:
    """A repository may be called like the path of a tag: neither breaks the other's pulls."""
    tier.write_manifest(Name.parse("docker.io/library/img/tags/latest"), Digest.of(b"m"), b"m")
    assert tier.move_pointer(NAME, TAG, None, Pointer(Digest.of(b"m"), time.time()))
    assert tier.read_pointer(NAME, TAG) is None
    assert tier.read_manifest(Name.parse("docker.io/library/img/tags/latest"), Digest.of(b"m")) == b"m"


def test_a_directory_that_cannot_be_written_gives_a_partial_file_in_memory(tmp_path: Path) -> None:
    """Without a partial file a blob is still passed on."""
    tier = LocalStore(tmp_path / "nowhere", "cache/", 0)
    partial_file = tier.claim_partial_file(Digest.of(b"blob"))
    assert partial_file is not None
    partial_file.append(b"blob")
    assert partial_file.has_correct_digest()
    assert partial_file.read_overflow(0, 10) == b"blob"
    assert not tier.commit(partial_file)
