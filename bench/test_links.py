"""Benchmarks of the check that a blob belongs to a repository: in memory, and in a repository with many manifests."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from dockyard.cache.links import Links
from dockyard.cache.stores import Stores
from dockyard.cache.threads import Threads
from dockyard.config.settings import Upstream
from dockyard.errors import BlobUnknown
from dockyard.oci.manifest import OCI_IMAGE
from dockyard.oci.reference import Digest, Name
from dockyard.routing import Target
from dockyard.s3.bucket import Bucket
from dockyard.s3.outbox import Outbox
from dockyard.s3.publisher import Publisher
from dockyard.storage.link_index import LinkIndex
from dockyard.storage.local import LocalStore

TARGET = Target(Upstream("up.test", "up.test"), "app", Name.parse("up.test/app"))
MANY_MANIFESTS = 10_000
COMMON_LAYERS, OWN_LAYERS = 5, 5


class UpstreamWithoutBlobs:
    """Stands for Blobs: the upstream has none."""

    async def find_upstream_size(self, target: Target, digest: Digest) -> int:
        raise BlobUnknown(f"{target.name} has no {digest}")


def make_manifest(number: int) -> bytes:
    """Make the manifest of an image with ten layers, half of which all images have."""
    texts = [f"common {layer}" for layer in range(COMMON_LAYERS)]
    texts += [f"layer {layer} of {number}" for layer in range(OWN_LAYERS)]
    layers = [
        {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": str(Digest.of(text.encode())), "size": 1}
        for text in texts
    ]
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": str(digest_of_config(number))}
    document = {"schemaVersion": 2, "mediaType": OCI_IMAGE, "config": {**config, "size": 1}, "layers": layers}
    return json.dumps(document).encode()


def digest_of_config(number: int) -> Digest:
    """The digest of the config of an image, which no other image has."""
    return Digest.of(f"config {number}".encode())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    """A local store with many manifests of one repository."""
    store = LocalStore(tmp_path_factory.mktemp("store"), "cache/", 0)
    store.create_directories()
    directory: Path = store.directories.root / "cache/manifests/up.test/app/sha256"
    directory.mkdir(parents=True)
    for number in range(MANY_MANIFESTS):
        body = make_manifest(number)
        (directory / Digest.of(body).encoded).write_bytes(body)
    return store


@pytest.fixture(scope="module")
def index(store: LocalStore) -> LinkIndex:
    """The index of the repository, complete."""
    store.links.refresh(TARGET.name)
    return store.links


@pytest.fixture
def links(store: LocalStore) -> Iterator[Links]:
    """The links of a worker."""
    threads = Threads()
    publisher = Publisher(store, None, Outbox(store.directories.root / "unpublished"), 0, lambda _: True)
    yield Links(Stores(store, Bucket(None), publisher), UpstreamWithoutBlobs(), threads)
    threads.close()


def test_link_in_memory(benchmark: BenchmarkFixture, links: Links) -> None:
    """What the check costs for a blob of an image that was pulled a moment ago; a thousand times."""
    digest = digest_of_config(1)

    async def ask_often() -> None:
        for _ in range(1000):
            await links.require(TARGET, digest)

    with asyncio.Runner() as runner:
        runner.run(links.require(TARGET, digest))
        benchmark(lambda: runner.run(ask_often()))


def test_link_in_the_index(benchmark: BenchmarkFixture, index: LinkIndex) -> None:
    """A repository with many manifests, all of which were read."""
    assert benchmark(index.has, TARGET.name, digest_of_config(MANY_MANIFESTS // 2))
    assert not index.has(TARGET.name, Digest.of(b"of another repository"))


def test_first_question(benchmark: BenchmarkFixture, store: LocalStore) -> None:
    """The first request for a blob of a repository with many manifests: all of them are read."""

    def ask() -> bool:
        index = LinkIndex(store.links._directory_of)  # noqa: SLF001  an empty one
        index.refresh(TARGET.name)
        return index.has(TARGET.name, digest_of_config(MANY_MANIFESTS - 1))

    assert benchmark.pedantic(ask, rounds=3)


def test_one_new_manifest(benchmark: BenchmarkFixture, store: LocalStore, index: LinkIndex) -> None:
    """A repository with many manifests has got one more, which another worker has stored."""
    numbers = iter(range(MANY_MANIFESTS, 2 * MANY_MANIFESTS))

    def ask() -> bool:
        number = next(numbers)
        body = make_manifest(number)
        store.write_manifest(TARGET.name, Digest.of(body), body)
        index.refresh(TARGET.name)
        return index.has(TARGET.name, digest_of_config(number))

    assert benchmark.pedantic(ask, rounds=20)


def test_unknown_blob(benchmark: BenchmarkFixture, links: Links, index: LinkIndex) -> None:
    """A blob of another repository, until the upstream is asked; the directory has not changed."""
    assert index.listed_at(TARGET.name)
    numbers = iter(range(1_000_000))

    async def ask() -> None:
        with pytest.raises(BlobUnknown):
            await links.require(TARGET, Digest.of(f"unknown {next(numbers)}".encode()))

    with asyncio.Runner() as runner:
        benchmark(lambda: runner.run(ask()))
