"""The index of links: which manifests it reads, what it forgets, and that it never answers for another repository."""

import json
import os
import time
from pathlib import Path

import pytest

from dockyard.oci.manifest import OCI_IMAGE, ORAS_ARTIFACT
from dockyard.oci.reference import Digest, Name
from dockyard.storage import link_index
from dockyard.storage.digest_set import DigestSet
from dockyard.storage.link_index import LinkIndex
from dockyard.storage.local import LocalStore
from tests.support.schema1 import sign

NAME, OTHER = Name.parse("up.test/app"), Name.parse("up.test/other")


class Store:
    """A local store, and an index of it."""

    def __init__(self, directory: Path, max_bytes: int = link_index.MAX_INDEX_BYTES) -> None:
        self.local = LocalStore(directory, "cache/", 0)
        self.local.create_directories()
        self.index = LinkIndex(self.local._manifest_directory, max_bytes)

    def add(self, *layers: str, name: Name = NAME, algorithm: str = "sha256") -> Digest:
        """Store a manifest with these layers, as another worker does."""
        body = image(*layers)
        digest = Digest.of(body, algorithm)
        self.local.write_manifest(name, digest, body)
        return digest

    def path(self, digest: Digest, name: Name = NAME) -> Path:
        """The file of a manifest."""
        return self.local._manifest_directory(name, digest.algorithm) / digest.encoded

    def has(self, layer: str, name: Name = NAME) -> bool:
        """Whether the index has a link, after it was brought up to date."""
        if not self.index.is_current(name):
            self.index.refresh(name)
        return self.index.has(name, layer_digest(layer))

    def grow_old(self, name: Name = NAME) -> None:
        """Make the last change of the directory so old that the next one has another time."""
        directory = self.local._manifest_directory(name, "sha256")
        os.utime(directory, (0, time.time() - 60))


def layer_digest(layer: str) -> Digest:
    """The digest of a layer."""
    return Digest.of(layer.encode())


def image(*layers: str) -> bytes:
    """A manifest with these layers."""
    config, *others = (
        {"mediaType": "application/octet-stream", "digest": str(layer_digest(layer)), "size": 1}
        for layer in ("config", *layers)
    )
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_IMAGE, "config": config, "layers": others}).encode()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The manifests that were read, by their hex digits."""
    read: list[str] = []
    read_links = link_index._read_links

    def record(directory: str, algorithm: str, file: str, blobs: DigestSet) -> bool:
        read.append(file)
        return read_links(directory, algorithm, file, blobs)

    monkeypatch.setattr(link_index, "_read_links", record)
    return read


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path)


def test_the_blobs_of_the_manifests_of_a_repository_are_found_and_no_others(store: Store) -> None:
    """Of manifests with digests of all algorithms."""
    store.add("a")
    store.add("b", algorithm="sha512")
    store.add("c", name=OTHER)
    assert [layer for layer in ("a", "b", "c", "d", "config") if store.has(layer)] == ["a", "b", "config"]
    assert [layer for layer in ("a", "b", "c") if store.has(layer, OTHER)] == ["c"]


@pytest.mark.parametrize("below", ["up.test", "up.test/app/x", "up.test/app/sha256", "up.test/ap"])
def test_the_manifests_of_a_repository_with_a_longer_or_shorter_name_do_not_count(store: Store, below: str) -> None:
    """Their directories are above or below each other."""
    store.add("a")
    assert not store.has("a", Name.parse(below))
    store.add("b", name=Name.parse(below))
    assert not store.has("b")


def test_each_manifest_is_read_once(store: Store, read: list[str]) -> None:
    """Also when manifests are added and blobs are not found."""
    first = store.add("a")
    assert store.has("a")
    second = store.add("b")
    assert store.has("b")
    assert store.has("a")
    assert not store.has("c")
    assert read == [first.encoded, second.encoded]


def test_nothing_is_listed_while_nothing_changes(store: Store) -> None:
    """A question about an unknown blob costs no listing then."""
    store.add("a")
    store.grow_old()
    assert not store.has("b")
    assert store.index.is_current(NAME)
    store.add("b")
    assert not store.index.is_current(NAME)
    assert store.has("b")


def test_a_directory_that_has_just_changed_is_listed_again(store: Store) -> None:
    """It may change once more without a new modification time."""
    store.add("a")
    store.index.refresh(NAME)
    directory = store.local._manifest_directory(NAME, "sha256")
    found = directory.stat()
    store.add("b")
    os.utime(directory, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert store.has("b")


def test_a_repository_without_manifests_takes_no_memory(store: Store) -> None:
    """A client may ask for many names."""
    for number in range(100):
        assert not store.has("a", Name.parse(f"up.test/{number}"))
    assert not store.index._repositories


def test_a_damaged_manifest_names_nothing_until_it_is_replaced(store: Store) -> None:
    """The next pull of it replaces it."""
    digest = store.add("a")
    store.path(digest).write_bytes(image("b"))
    assert not store.has("a")
    assert not store.has("b")
    store.add("a")
    assert store.has("a")
    assert not store.has("b")


def test_other_files_are_ignored(store: Store) -> None:
    """Whatever other programs put there."""
    store.add("a")
    directory = store.local._manifest_directory(NAME, "sha256")
    (directory / "notes").write_bytes(image("b"))
    (directory / ("G" * 64)).write_bytes(image("b"))
    (directory / ("a" * 63)).write_bytes(image("b"))
    (directory / ("a" * 64)).mkdir()
    assert store.has("a")
    assert not store.has("b")


def test_an_artifact_is_read_if_it_states_its_type(store: Store) -> None:
    """One that does not may be an index for its registry, which then does not read its blobs."""
    layer = {"mediaType": "application/octet-stream", "digest": str(layer_digest("a")), "size": 1}
    for stated, is_found in (({}, False), ({"mediaType": ORAS_ARTIFACT}, True)):
        body = json.dumps({"artifactType": "a/b", "blobs": [layer], **stated}).encode()
        store.local.write_manifest(NAME, Digest.of(body), body, ORAS_ARTIFACT)
        assert store.has("a") is is_found


def test_looking_for_links_is_not_a_use_of_the_manifests(store: Store) -> None:
    """Otherwise none of them would be the least recently used."""
    digest = store.add("a")
    os.utime(store.path(digest), (1000, time.time()))
    assert store.has("a")
    assert store.path(digest).stat().st_atime == 1000


def test_the_links_of_a_deleted_manifest_are_dropped_after_a_while(
    store: Store, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index is then made anew, once."""
    store.add("a")
    deleted = store.add("b")
    assert store.has("b")
    store.path(deleted).unlink()
    assert store.has("b")
    monkeypatch.setattr(link_index, "REBUILD_INTERVAL_S", 0.0)
    store.grow_old()
    assert not store.has("b")
    assert store.has("a")
    store.grow_old()
    read.clear()
    assert not store.has("b")
    assert not read


def test_a_deleted_repository_has_no_links(store: Store) -> None:
    """At once, and what is stored later counts."""
    digest = store.add("a")
    assert store.has("a")
    store.path(digest).unlink()
    store.path(digest).parent.rmdir()
    assert not store.has("a")
    store.add("b")
    assert store.has("b")
    assert not store.has("a")


def test_the_repositories_that_were_not_used_for_longest_are_dropped(tmp_path: Path) -> None:
    """They are read again when they are asked for."""
    store = Store(tmp_path, max_bytes=4 * 1024)
    names = [Name.parse(f"up.test/{number}") for number in range(10)]
    for name in names:
        store.add("a", name=name)
        store.grow_old(name)
        assert store.has("a", name)
    assert list(store.index._repositories) == names[-3:]
    assert store.index._size_bytes == sum(each.size_bytes for each in store.index._repositories.values())
    assert all(store.has("a", name) for name in names)


def test_one_repository_takes_at_most_half_of_the_memory(tmp_path: Path) -> None:
    """What does not fit is not found."""
    store = Store(tmp_path, max_bytes=8 * 1024)
    for number in range(200):
        store.add(str(number))
    found = [number for number in range(200) if store.has(str(number))]
    assert 10 < len(found) < 150
    assert store.index._size_bytes < 4 * 1024 + 500


def test_a_large_directory_that_changes_all_the_time_is_not_listed_all_the_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks for unknown blobs must not keep a processor busy."""
    monkeypatch.setattr(link_index, "LARGE_DIRECTORY_FILES", 0)
    monkeypatch.setattr(link_index, "MAX_LISTING_SHARE", 1e-9)
    store.add("a")
    assert store.has("a")
    store.add("b")
    assert not store.has("b")
    monkeypatch.setattr(link_index, "MAX_LISTING_SHARE", 1e9)
    store.index.refresh(NAME)
    store.add("c")
    assert store.has("c")


def test_a_signed_schema_1_manifest_is_read(store: Store) -> None:
    """Its digest is that of its payload."""
    payload = {"schemaVersion": 1, "name": "app", "tag": "v1", "fsLayers": [{"blobSum": str(layer_digest("a"))}]}
    signed = sign(payload)
    store.local.write_manifest(NAME, Digest.parse(signed.digest), signed.body)
    assert store.has("a")


def test_reading_many_manifests_ends_when_the_worker_stops(store: Store, read: list[str]) -> None:
    """It would delay the end of the process."""
    store.add("a")
    store.index.close()
    store.index.refresh(NAME)
    assert not read
