"""The size cap: what is evicted, when, and that it holds whatever state the disk and the directory are in."""

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import structlog.testing

from dockyard.oci.reference import Digest, Name, Tag
from dockyard.storage import atomic_write
from dockyard.storage.allowance import MIN_LISTING_AGE_S, Allowance
from dockyard.storage.items import BlobItem, Item, ManifestItem, TagItem
from dockyard.storage.local import LocalStore, Pointer
from dockyard.storage.partial_file import PartialFile
from tests.support.busy_machine import EVENT_TIMEOUT_S

BLOCK = 4096
BLOB_BYTES = 3 * BLOCK
CAP = 10 * BLOCK  # three blobs, and a block more
NAME = Name.parse("docker.io/library/img")
YEAR_S = 365 * 86400.0


def make_store(directory: Path, max_size: int = CAP, unpublished: set[Item] | None = None) -> LocalStore:
    """Create a store in a directory; the bucket does not have the `unpublished` items yet."""
    store = LocalStore(directory, "cache/", max_size, unpublished=unpublished)
    store.create_directories()
    return store


def body_of(number: int) -> bytes:
    """Return the bytes of a blob."""
    return bytes([number]) * BLOB_BYTES


def add_blob(store: LocalStore, number: int) -> Path:
    """Add a blob as a download does, without evicting others; return its path."""
    digest = Digest.of(body_of(number))
    partial_file = store.claim_partial_file(digest)
    assert isinstance(partial_file, PartialFile)
    partial_file.append(body_of(number))
    assert store.commit(partial_file)
    return store.directories.blobs / "sha256" / digest.encoded[:2] / digest.encoded


def add_manifest(store: LocalStore, number: int) -> Path:
    """Add a small file; return its path."""
    digest = Digest.of(f"manifest {number}".encode())
    store.write_manifest(NAME, digest, f"manifest {number}".encode())
    return store.directories.small[0] / str(NAME) / "sha256" / digest.encoded


def set_use(path: Path, age_s: float) -> None:
    """Pretend that a file was last used so long ago."""
    os.utime(path, (time.time() - age_s,) * 2)


def exist(paths: list[Path]) -> list[bool]:
    """Return which files exist."""
    return [path.exists() for path in paths]


def stored_bytes(directory: Path) -> int:
    """Return the bytes of all blobs and partial files."""
    roots = (directory / "cache" / "blobs", directory / "partial")
    return sum(path.stat().st_size for root in roots for path in root.rglob("*") if path.is_file())


def test_the_least_recently_used_blobs_are_evicted(tmp_path: Path) -> None:
    """Blobs that were read recently are kept; a use in the future counts as old, unless it is corrected by another."""
    store = make_store(tmp_path)
    paths = [add_blob(store, number) for number in range(5)]
    for path, age_s in zip(paths, [1000, -5 * YEAR_S, -5 * YEAR_S, 800, 900], strict=True):
        set_use(path, age_s)
    stored = store.blobs.open(Digest.of(body_of(1)))
    assert stored
    os.close(stored.fd)
    store.size_cap.enforce_if_due()
    assert exist(paths) == [False, True, False, True, True]


def test_an_eviction_waits_for_another_process_that_evicts(tmp_path: Path) -> None:
    """When it returns, the store is within its cap."""
    store = make_store(tmp_path)
    for number in range(6):
        add_blob(store, number)
    lock = os.open(tmp_path / "run", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    thread = threading.Thread(target=store.size_cap.enforce_if_due)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    os.close(lock)
    thread.join(EVENT_TIMEOUT_S)
    assert stored_bytes(tmp_path) == 3 * BLOB_BYTES


def test_no_cap_keeps_everything(tmp_path: Path) -> None:
    """0 means no limit."""
    store = make_store(tmp_path, max_size=0)
    paths = [add_blob(store, number) for number in range(20)]
    store.size_cap.enforce_if_due()
    store.size_cap.enforce_if_used_up()
    assert all(exist(paths))


def test_an_evicted_blob_can_still_be_read_by_a_reader_that_has_it_open(tmp_path: Path) -> None:
    """Eviction does not interrupt a reader."""
    store = make_store(tmp_path, max_size=BLOCK)
    path = add_blob(store, 1)
    stored = store.blobs.open(Digest.of(body_of(1)))
    assert stored is not None
    store.size_cap.enforce_if_due()
    assert not path.exists()
    assert os.pread(stored.fd, BLOB_BYTES, 0) == body_of(1)
    os.close(stored.fd)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EIO, errno.EACCES])
def test_the_cap_holds_where_a_directory_cannot_be_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A blob is stored once it is renamed, and counts; there is no warning that it is not."""

    def fail(path: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(atomic_write, "sync_directory", fail)
    with structlog.testing.capture_logs() as logs:
        store = make_store(tmp_path)
        for number in range(12):
            assert add_blob(store, number).exists()
            add_manifest(store, number)
            store.size_cap.enforce_if_due()
            assert stored_bytes(tmp_path) <= CAP
    assert [line for line in logs if line["log_level"] != "info"] == []


@pytest.mark.parametrize(
    ("code", "is_kept"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False), (errno.EDQUOT, False)]
)
def test_a_blob_is_kept_unless_its_bytes_could_not_be_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, *, is_kept: bool
) -> None:
    """A file system without fsync is no reason; one that reports that writing failed is."""

    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(atomic_write.os, "fsync", fail)
    store = make_store(tmp_path)
    partial_file = store.claim_partial_file(Digest.of(body_of(1)))
    assert isinstance(partial_file, PartialFile)
    partial_file.append(body_of(1))
    with structlog.testing.capture_logs() as logs:
        assert store.commit(partial_file) == is_kept
    assert [line["event"] for line in logs] == ([] if is_kept else ["cannot store a blob"])
    assert list((tmp_path / "partial").iterdir()) == []


def test_the_cap_holds_while_the_bucket_takes_nothing(tmp_path: Path) -> None:
    """What is not published yet is evicted too, and is not to be published any more. It is logged once."""
    unpublished: set[Item] = set()
    store = make_store(tmp_path, unpublished=unpublished)
    paths = []
    with structlog.testing.capture_logs() as logs:
        for number in range(20):
            unpublished.add(BlobItem(Digest.of(body_of(number))))
            paths.append(add_blob(store, number))
            set_use(paths[-1], 1000 - number)
            store.size_cap.enforce_if_due()
            assert stored_bytes(tmp_path) <= CAP
    assert exist(paths[-3:]) == [True, True, True]
    assert {item.digest for item in unpublished if isinstance(item, BlobItem)} == {
        Digest.of(body_of(number)) for number in range(20) if paths[number].exists()
    }
    assert [line["log_level"] for line in logs if "not in the bucket" in line["event"]] == ["warning"]


def test_the_cap_is_that_of_all_workers(tmp_path: Path) -> None:
    """What one worker adds counts for the others: forty workers that each add one blob keep the cap."""
    for number in range(40):
        store = make_store(tmp_path)
        add_blob(store, number)
        store.size_cap.enforce_if_due()
        assert stored_bytes(tmp_path) <= CAP


def test_files_are_not_listed_for_every_blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room left, the workers only count."""
    stores = [make_store(tmp_path, max_size=1000 * BLOCK) for _ in range(3)]
    add_blob(stores[0], 0)
    stores[0].size_cap.enforce_if_due()
    monkeypatch.setattr("dockyard.storage.eviction.list_files", lambda *_, **__: pytest.fail("listed"))
    for number in range(1, 60):
        add_blob(stores[number % 3], number)
        stores[number % 3].size_cap.enforce_if_due()


@pytest.mark.parametrize("state", ["", "garbage", "1 2 3 4 5", "a b c d", "\xff"])
def test_a_damaged_count_is_replaced(tmp_path: Path, state: str) -> None:
    """The files are listed when the count of the workers cannot be read."""
    store = make_store(tmp_path)
    for number in range(6):
        add_blob(store, number)
    (tmp_path / "run" / "allowance").write_text(state, "latin-1")
    store.size_cap.enforce_if_due()
    assert stored_bytes(tmp_path) <= CAP


def test_the_cap_holds_without_a_file_for_the_count(tmp_path: Path) -> None:
    """When the run directory cannot be written, each worker counts what it adds."""
    (tmp_path / "run" / "allowance").mkdir(parents=True)
    store = make_store(tmp_path)
    for number in range(12):
        add_blob(store, number)
        store.size_cap.enforce_if_due()
        assert stored_bytes(tmp_path) <= CAP


def test_files_of_others_count_and_are_evicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were copied into the cache are found after a while although this server adds nothing."""
    store = make_store(tmp_path)
    kept = add_blob(store, 1)
    store.size_cap.enforce_if_due()
    foreign = tmp_path / "cache" / "blobs" / "sha256" / "aa" / "not a digest"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(bytes(CAP))
    set_use(foreign, 1000)
    store.size_cap.enforce_if_used_up()
    assert foreign.exists()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + MIN_LISTING_AGE_S + 1)
    store.size_cap.enforce_if_used_up()
    assert exist([foreign, kept]) == [False, True]


def test_files_that_take_long_to_list_are_listed_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing of a second is worth eight minutes, so that it costs nothing on average."""
    allowance = Allowance(tmp_path / "allowance", 1000)
    allowance.renew(500, listing_s=1.0)
    now = time.time()
    for after_s, is_left in ((2 * MIN_LISTING_AGE_S, True), (450, True), (550, False)):
        monkeypatch.setattr(time, "time", lambda after_s=after_s: now + after_s)
        assert allowance.use(1) == is_left


@pytest.mark.parametrize("max_size", [CAP, CAP // 2])
def test_a_start_finds_what_was_stored_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_size: int) -> None:
    """The cap holds after a restart, also when it was lowered, before anything is added."""
    store = make_store(tmp_path, max_size=100 * CAP)
    for number in range(6):
        add_blob(store, number)
    store.size_cap.enforce_if_due()
    monkeypatch.setattr(os, "getppid", lambda: 1)  # another server
    make_store(tmp_path, max_size=max_size).size_cap.enforce_if_used_up()
    assert 0 < stored_bytes(tmp_path) <= max_size


def test_partial_files_count_and_are_evicted_when_nobody_writes_them(tmp_path: Path) -> None:
    """A partial file that waits to be continued is evicted by its age; one that is being written is not."""
    store = make_store(tmp_path)
    paths = []
    for number in range(2):
        partial_file = store.claim_partial_file(Digest.of(body_of(number)))
        assert isinstance(partial_file, PartialFile)
        assert partial_file.path
        partial_file.append(body_of(number))
        paths.append(partial_file.path)
    partial_file.close()
    for path in paths:
        set_use(path, 1000)
    blobs = [add_blob(store, number) for number in range(2, 4)]
    store.size_cap.enforce_if_due()
    assert exist(paths + blobs) == [True, False, True, True]


def test_small_files_are_evicted_when_there_are_too_many(tmp_path: Path) -> None:
    """Manifests, tags and lists have a share of the cap; above it the least recently used of them go."""
    store = make_store(tmp_path, max_size=800 * BLOCK)
    blobs = [add_blob(store, number) for number in range(250)]
    for path in blobs:
        set_use(path, 1000)
    manifests = [add_manifest(store, number) for number in range(400)]
    for number, path in enumerate(manifests):
        set_use(path, 10_000 - number)
    store.size_cap.enforce_if_due()
    assert exist(manifests) == [number >= 360 for number in range(400)]
    assert sum(exist(blobs)) == 226


def test_a_blob_larger_than_the_cap_does_not_evict_small_files(tmp_path: Path) -> None:
    """Tags and manifests keep an image known when nothing else fits."""
    store = make_store(tmp_path, max_size=1000 * BLOCK)
    manifests = [add_manifest(store, number) for number in range(40)]
    foreign = store.directories.blobs / "large"
    foreign.write_bytes(bytes(2000 * BLOCK))
    add_blob(store, 0)
    store.size_cap.enforce_if_due()
    assert all(exist(manifests))
    assert not foreign.exists()


def test_a_file_that_cannot_be_deleted_does_not_stop_the_eviction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are evicted, and the log says which one stays and why."""
    store = make_store(tmp_path)
    paths = [add_blob(store, number) for number in range(6)]
    for number, path in enumerate(paths):
        set_use(path, 1000 - number)
    unlink = Path.unlink

    def refuse_first(path: Path, missing_ok: bool = False) -> None:  # noqa: FBT001, FBT002  as Path.unlink
        if path == paths[0]:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse_first)
    with structlog.testing.capture_logs() as logs:
        store.size_cap.enforce_if_due()
    assert exist(paths) == [True, False, False, False, True, True]
    assert [line["file"] for line in logs if line["log_level"] == "warning"] == [str(paths[0])]


# A full disk


def no_space(code: int = errno.ENOSPC) -> OSError:
    """The error of a write to a full disk."""
    return OSError(code, os.strerror(code))


def set_free_inodes(monkeypatch: pytest.MonkeyPatch, free: int, total: int = 400) -> None:
    """Pretend that the file system has so many inodes; 0 in total: it does not count them."""
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_files=total, f_favail=free))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_room_is_made_by_evicting_the_least_recently_used(tmp_path: Path, code: int) -> None:
    """At least what is needed, and not the whole store; other errors evict nothing."""
    store = make_store(tmp_path, max_size=0)
    paths = [add_blob(store, number) for number in range(20)]
    for number, path in enumerate(paths):
        set_use(path, 1000 - number)
    assert store.size_cap.make_room(no_space(code), 2 * BLOB_BYTES)
    assert exist(paths)[:2] == [False, False]
    assert all(exist(paths[5 if code == errno.ENOSPC else 10 :]))  # a quota may be one of files: more are evicted
    for other in (errno.EIO, errno.EROFS, errno.EACCES):
        assert not store.size_cap.make_room(no_space(other), BLOB_BYTES)


def test_without_inodes_old_small_files_are_evicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files first, the least recently used of them, with the directories that become empty."""
    store = make_store(tmp_path, max_size=0)
    blobs = [add_blob(store, number) for number in range(8)]
    for path in blobs:
        set_use(path, 20_000)
    manifests = [add_manifest(store, number) for number in range(100)]
    for number, path in enumerate(manifests):
        set_use(path, 10_000 - number)
    assert store.move_pointer(Name.parse("docker.io/library/old"), Tag.parse("v1"), None, pointer(0))
    old = tmp_path / "cache/manifests/docker.io/library/old"
    set_use(old / "tags/v1", 30_000)
    set_free_inodes(monkeypatch, 0)
    assert store.size_cap.make_room(no_space(), 0)
    assert all(exist(blobs))
    assert exist(manifests) == [number >= 26 for number in range(100)]
    assert not old.exists()


def test_without_inodes_blobs_are_evicted_when_there_is_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store of blobs only makes room as well."""
    store = make_store(tmp_path, max_size=0)
    blobs = [add_blob(store, number) for number in range(100)]
    for number, path in enumerate(blobs):
        set_use(path, 10_000 - number)
    set_free_inodes(monkeypatch, 0)
    assert store.size_cap.make_room(no_space(), 0)
    assert exist(blobs) == [number >= 25 for number in range(100)]


def test_bytes_are_evicted_where_inodes_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems report neither used nor free inodes."""
    store = make_store(tmp_path, max_size=0)
    blob, manifest = add_blob(store, 1), add_manifest(store, 1)
    set_free_inodes(monkeypatch, 0, total=0)
    assert store.size_cap.make_room(no_space(), 1)
    assert exist([blob, manifest]) == [False, True]


def test_an_empty_store_can_make_no_room(tmp_path: Path) -> None:
    """The disk is full of something else."""
    assert not make_store(tmp_path).size_cap.make_room(no_space(), 1)


def pointer(number: int) -> Pointer:
    """A pointer to some manifest."""
    return Pointer(Digest.of(str(number).encode()), time.time())


def claim(store: LocalStore) -> bool:
    """Open a partial file."""
    partial_file = store.claim_partial_file(Digest.of(b"new"))
    assert isinstance(partial_file, PartialFile)
    return partial_file.path is not None


def commit(store: LocalStore) -> bool:
    """Store a blob."""
    return add_blob(store, 200).exists()


def move_pointer(store: LocalStore) -> bool:
    """Store a tag."""
    store.move_pointer(NAME, Tag.parse("new"), None, pointer(1))
    return store.read_pointer(NAME, Tag.parse("new")) is not None


def write_list(store: LocalStore) -> bool:
    """Store a list."""
    store.write_list(NAME, None, b"[]")
    return store.read_list(NAME, None) is not None


@pytest.mark.parametrize("write", [claim, commit, move_pointer, write_list])
@pytest.mark.parametrize("call", ["os.open", "os.mkdir", "os.rename"])
def test_every_write_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[LocalStore], bool], call: str
) -> None:
    """A write that finds no space is repeated when something was evicted."""
    store = make_store(tmp_path, max_size=0)
    old = add_blob(store, 1)
    set_use(old, 1000)
    original = getattr(os, call.removeprefix("os."))

    def fail_while_full(path: str, *args: int, **keywords: int) -> object:
        is_creation = call != "os.open" or args[0] & os.O_CREAT
        if old.exists() and is_creation and not str(path).endswith(".absent"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return original(path, *args, **keywords)

    monkeypatch.setattr(call, fail_while_full)
    assert write(store)


def test_what_is_evicted_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Manifests and tags as well as blobs."""
    digest, tag = Digest.of(b"manifest"), Tag.parse("v1")
    unpublished: set[Item] = {ManifestItem(NAME, digest), TagItem(NAME, tag)}
    store = make_store(tmp_path, max_size=0, unpublished=unpublished)
    store.write_manifest(NAME, digest, b"manifest")
    store.move_pointer(NAME, tag, None, Pointer(digest, time.time()))
    set_free_inodes(monkeypatch, 0)
    while unpublished:
        assert store.size_cap.make_room(no_space(), 0)


def test_what_is_stored_again_while_it_is_evicted_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker may need an evicted tag at once, and add it to the outbox before the eviction has ended."""
    digest, tag = Digest.of(b"manifest"), Tag.parse("v1")
    item = TagItem(NAME, tag)
    unpublished: set[Item] = {item}
    store = make_store(tmp_path, max_size=0, unpublished=unpublished)
    store.move_pointer(NAME, tag, None, Pointer(digest, time.time()))
    set_free_inodes(monkeypatch, 0)
    unlink = Path.unlink

    def store_again(path: Path, missing_ok: bool = False) -> None:  # noqa: FBT001, FBT002  as Path.unlink
        unlink(path, missing_ok)
        if path.name == "v1":
            unpublished.add(item)
            store.move_pointer(NAME, tag, None, Pointer(digest, time.time()))

    monkeypatch.setattr(Path, "unlink", store_again)
    assert store.size_cap.make_room(no_space(), 0)
    assert store.read_pointer(NAME, tag)
    assert item in unpublished


def test_what_cannot_be_evicted_is_still_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be deleted stays in the outbox."""
    item = ManifestItem(NAME, Digest.of(b"manifest"))
    unpublished: set[Item] = {item}
    store = make_store(tmp_path, max_size=0, unpublished=unpublished)
    store.write_manifest(NAME, item.digest, b"manifest")
    set_free_inodes(monkeypatch, 0)

    def refuse(path: Path, missing_ok: bool = False) -> None:  # noqa: FBT001, FBT002  as Path.unlink
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    assert not store.size_cap.make_room(no_space(), 0)
    assert item in unpublished


# Files that are not kept


@pytest.mark.parametrize(("size", "is_kept"), [(8 * BLOCK, True), (8 * BLOCK + 1, False), (100 * BLOCK, False)])
def test_a_file_may_take_most_of_the_cap(tmp_path: Path, size: int, *, is_kept: bool) -> None:
    """A larger one would replace nearly everything else."""
    reason = make_store(tmp_path).size_cap.find_reason_not_to_keep(size, size)

    assert (reason == "") is is_kept
    assert is_kept or "80% of storage.max_size, which is 40KiB: raise storage.max_size" in reason


def test_without_a_cap_the_disk_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is free of it, and what could be evicted; not what a former download has written of the file."""
    store = make_store(tmp_path, max_size=0)
    for number in range(10):
        add_blob(store, number)  # 30 blocks
    free = SimpleNamespace(f_bavail=10, f_frsize=BLOCK)
    monkeypatch.setattr(os, "statvfs", lambda _: free)
    sizes = [10 * BLOCK, 31 * BLOCK, 33 * BLOCK, 2**40]

    assert [bool(store.size_cap.find_reason_not_to_keep(size, size)) for size in sizes] == [False, False, True, True]
    assert store.size_cap.find_reason_not_to_keep(2**40, BLOCK) == ""


def test_a_file_that_is_too_large_for_a_new_cap_is_evicted_first(tmp_path: Path) -> None:
    """Although it was used last."""
    before = make_store(tmp_path, max_size=100 * BLOCK)
    small = [add_blob(before, number) for number in range(2)]
    digest = Digest.of(bytes(12 * BLOCK))
    partial_file = before.claim_partial_file(digest)
    assert isinstance(partial_file, PartialFile)
    partial_file.append(bytes(12 * BLOCK))
    assert before.commit(partial_file)
    large = before.directories.blobs / "sha256" / digest.encoded[:2] / digest.encoded
    set_use(small[0], 100)
    set_use(small[1], 50)
    make_store(tmp_path).size_cap.enforce_if_used_up()

    assert exist([large, *small]) == [False, True, True]


def test_an_object_that_is_too_large_is_not_written(tmp_path: Path) -> None:
    """Such as a manifest."""
    store = make_store(tmp_path)
    body = bytes(9 * BLOCK)
    with structlog.testing.capture_logs() as logs:
        store.write_manifest(NAME, Digest.of(body), body)

    assert store.read_manifest(NAME, Digest.of(body)) is None
    assert [line["event"] for line in logs] == ["an object is too large for storage.max_size: it is not kept"]
