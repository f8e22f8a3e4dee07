"""Which blobs may be served under a repository: where a link is looked for, in which order, and what is remembered."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import attrs
import pytest

from dockyard.access.verdicts import Verdicts
from dockyard.cache import links as links_module
from dockyard.cache.links import Links
from dockyard.cache.manifests import Manifests
from dockyard.cache.stores import Stores
from dockyard.cache.threads import Threads
from dockyard.config.settings import Auth, Upstream
from dockyard.errors import (
    BlobUnknown,
    Denied,
    ManifestUnknown,
    NameUnknown,
    RegistryError,
    TooManyRequests,
    Unavailable,
    UpstreamTimeout,
)
from dockyard.oci.login import Login
from dockyard.oci.manifest import OCI_IMAGE, Manifest
from dockyard.oci.reference import Digest, Name
from dockyard.routing import Target
from dockyard.s3.bucket import Bucket
from dockyard.s3.errors import S3Error
from dockyard.s3.outbox import Outbox
from dockyard.s3.publisher import Publisher
from dockyard.storage.local import LocalStore
from dockyard.workers.peers import Peers
from tests.support.busy_machine import EVENT_TIMEOUT_S

UPSTREAM = Upstream(prefix="up.test", registry="up.test", auth=Auth(type="anonymous"))
DECIDING = Upstream(prefix="up.test", registry="up.test", auth=Auth(type="anonymous"), access="upstream")
APP = Target(UPSTREAM, "app", Name.parse("up.test/app"))
OTHER = Target(UPSTREAM, "other", Name.parse("up.test/other"))
LAYER, STRANGE = Digest.of(b"layer"), Digest.of(b"strange")


class FakeBlobs:
    """Stands for Blobs: the upstream has some blobs in some repositories, or fails."""

    def __init__(self) -> None:
        self.there: set[tuple[str, Digest]] = set()
        self.error: RegistryError | None = None
        self.asked: Counter[tuple[str, Digest]] = Counter()
        self.is_asked, self.gate = asyncio.Event(), asyncio.Event()
        self.gate.set()

    async def find_upstream_size(self, target: Target, digest: Digest) -> int:
        self.asked[str(target.name), digest] += 1
        self.is_asked.set()
        await self.gate.wait()
        if self.error:
            raise self.error
        if (str(target.name), digest) not in self.there:
            raise BlobUnknown(f"up.test has no blob {digest}")
        return 1


class FakeS3:
    """Stands for S3Store: the links in the bucket, or a failure."""

    def __init__(self) -> None:
        self.links: set[tuple[Name, Digest]] = set()
        self.error: S3Error | None = None
        self.asked = 0

    def has_link(self, name: Name, digest: Digest) -> bool:
        self.asked += 1
        if self.error:
            raise self.error
        return (name, digest) in self.links

    def stat_blob(self, _: Digest) -> None:
        if self.error:
            raise self.error


@attrs.frozen
class Worker:
    """The links of one worker, and what they look at."""

    links: Links
    manifests: Manifests
    local: LocalStore
    blobs: FakeBlobs
    s3: FakeS3
    bucket: Bucket
    threads: Threads
    peers: Peers

    async def has(self, target: Target, digest: Digest) -> bool:
        """Whether a blob may be served under a repository."""
        try:
            await self.links.require(target, digest)
        except BlobUnknown:
            return False
        return True

    def close(self) -> None:
        self.bucket.close()
        self.threads.close()
        self.peers.close()


def image(*layers: Digest) -> Manifest:
    """A manifest with these layers."""
    config, *others = (
        {"mediaType": "application/octet-stream", "digest": str(digest), "size": 1}
        for digest in (Digest.of(b"config"), *layers)
    )
    document = {"schemaVersion": 2, "mediaType": OCI_IMAGE, "config": config, "layers": others}
    return Manifest.parse(json.dumps(document).encode(), None, None)


@pytest.fixture
async def make_worker(tmp_path: Path) -> AsyncIterator[Callable[..., Worker]]:
    """Start a worker over the same directory as the others of the test."""
    workers: list[Worker] = []
    confirmed = Verdicts()

    def make(*, has_bucket: bool = False) -> Worker:
        local, threads, s3, blobs = LocalStore(tmp_path, "cache/", 0), Threads(), FakeS3(), FakeBlobs()
        local.create_directories()
        bucket = Bucket(s3 if has_bucket else None)  # type: ignore[arg-type]
        publisher = Publisher(local, None, Outbox(tmp_path / "unpublished"), 0, lambda _: True)
        stores, peers = Stores(local, bucket, publisher), Peers(tmp_path / "run", 1)
        links = Links(stores, blobs, threads, confirmed)
        manifests = Manifests(stores, peers, {}, threads, links)
        workers.append(Worker(links, manifests, local, blobs, s3, bucket, threads, peers))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


@pytest.fixture
def worker(make_worker: Callable[..., Worker]) -> Worker:
    """A worker without a bucket."""
    return make_worker()


@pytest.fixture
def worker_with_bucket(make_worker: Callable[..., Worker]) -> Worker:
    """A worker with a bucket."""
    return make_worker(has_bucket=True)


def store(worker: Worker, target: Target, *layers: Digest) -> Manifest:
    """Store a manifest with these layers, as any worker does."""
    manifest = image(*layers)
    worker.local.write_manifest(target.name, manifest.digest, manifest.body)
    return manifest


async def test_a_blob_is_served_under_the_repository_whose_manifest_names_it_only(worker: Worker) -> None:
    """The upstream is asked about all others."""
    store(worker, APP, LAYER)
    store(worker, OTHER, STRANGE)
    assert await worker.has(APP, LAYER)
    assert not worker.blobs.asked
    assert not await worker.has(OTHER, LAYER)
    assert not await worker.has(APP, STRANGE)
    assert await worker.has(OTHER, STRANGE)
    assert worker.blobs.asked == {("up.test/other", LAYER): 1, ("up.test/app", STRANGE): 1}


async def test_what_another_worker_stores_later_is_found(make_worker: Callable[..., Worker]) -> None:
    """The workers share the local store."""
    worker, other = make_worker(), make_worker()
    store(other, APP, STRANGE)
    assert not await worker.has(APP, LAYER)
    store(other, APP, LAYER)
    assert await worker.has(APP, LAYER), "although it was unknown a moment ago"


async def test_a_served_manifest_makes_links_although_it_is_stored_nowhere(worker: Worker) -> None:
    """On a full disk."""
    await worker.links.add(APP, image(LAYER))
    assert await worker.has(APP, LAYER)
    assert not await worker.has(OTHER, LAYER)
    assert worker.blobs.asked == {("up.test/other", LAYER): 1}


async def test_a_manifest_from_memory_has_made_links(worker: Worker) -> None:
    """Its file may have been evicted."""
    manifest = store(worker, APP, LAYER)
    await worker.manifests.get(APP, manifest.digest)
    for path in (worker.local.directories.root / "cache").rglob(manifest.digest.encoded):
        path.unlink()
    assert (await worker.manifests.get(APP, manifest.digest)).manifest == manifest
    assert await worker.has(APP, LAYER)
    assert not worker.blobs.asked


async def test_the_upstream_confirms_what_no_manifest_names_and_is_asked_once(worker: Worker) -> None:
    """For any number of requests at the same time."""
    worker.blobs.there.add(("up.test/app", LAYER))
    worker.blobs.gate.clear()
    waiting = [asyncio.create_task(worker.has(APP, LAYER)) for _ in range(20)]
    await worker.blobs.is_asked.wait()
    worker.blobs.gate.set()
    assert all(await asyncio.gather(*waiting))
    assert await worker.has(APP, LAYER)
    assert not await worker.has(OTHER, LAYER)
    assert worker.blobs.asked == {("up.test/app", LAYER): 1, ("up.test/other", LAYER): 1}


async def test_an_unknown_blob_is_remembered_briefly(worker: Worker) -> None:
    """It may be pushed a moment later."""
    for _ in range(3):
        assert not await worker.has(APP, LAYER)
    assert worker.blobs.asked == {("up.test/app", LAYER): 1}
    worker.links._unknown.clear()  # as when UNKNOWN_TTL_S have passed
    worker.blobs.there.add(("up.test/app", LAYER))
    assert await worker.has(APP, LAYER)


async def test_a_refusal_is_not_remembered_for_another_login(worker: Worker) -> None:
    """Registries hide repositories from logins that may not see them."""
    assert not await worker.has(APP, LAYER)
    worker.blobs.there.add(("up.test/app", LAYER))
    assert not await worker.has(APP, LAYER)
    assert await worker.has(attrs.evolve(APP, login=Login("ann", "x")), LAYER)


@pytest.mark.parametrize("error", [BlobUnknown("x"), NameUnknown("y"), ManifestUnknown("z", retry_after_s=3)])
async def test_all_that_is_unknown_is_the_same_error(worker: Worker, error: RegistryError) -> None:
    """Whatever the upstream says, now and when it is remembered."""
    worker.blobs.error = error
    for _ in range(2):
        with pytest.raises(BlobUnknown) as caught:
            await worker.links.require(APP, LAYER)
        assert (caught.value.message, caught.value.retry_after_s) == (links_module.UNKNOWN_MESSAGE, None)
        assert type(caught.value) is BlobUnknown


@pytest.mark.parametrize(
    "error", [Unavailable("x"), UpstreamTimeout("x"), TooManyRequests("x", retry_after_s=7), Denied("x")]
)
async def test_other_failures_of_the_upstream_are_passed_on_and_not_remembered(
    worker: Worker, error: RegistryError
) -> None:
    """As for any blob that is stored nowhere."""
    worker.blobs.error = error
    with pytest.raises(type(error)) as caught:
        await worker.links.require(APP, LAYER)
    assert caught.value is error
    worker.blobs.error = None
    worker.blobs.there.add(("up.test/app", LAYER))
    assert await worker.has(APP, LAYER)


async def test_what_was_linked_is_served_during_an_outage(worker: Worker) -> None:
    """Manifests in the local store need no upstream."""
    store(worker, APP, LAYER)
    worker.blobs.error = Unavailable("down")
    assert await worker.has(APP, LAYER)


async def test_the_bucket_is_asked_before_the_upstream(worker_with_bucket: Worker) -> None:
    """Another replica has written the link."""
    worker = worker_with_bucket
    worker.s3.links.add((APP.name, LAYER))
    assert await worker.has(APP, LAYER)
    assert await worker.has(APP, LAYER)
    assert (worker.s3.asked, worker.blobs.asked) == (1, {})
    assert not await worker.has(OTHER, LAYER)
    assert worker.blobs.asked == {("up.test/other", LAYER): 1}


async def test_a_bucket_that_fails_is_left_out(worker_with_bucket: Worker) -> None:
    """The upstream decides meanwhile."""
    worker = worker_with_bucket
    worker.s3.error = S3Error("down", "unavailable")
    worker.blobs.there.add(("up.test/app", LAYER))
    assert await worker.has(APP, LAYER)
    assert not await worker.has(OTHER, LAYER)
    assert worker.s3.asked == 1, "its circuit breaker is open"


async def test_a_slow_bucket_is_asked_after_all_when_the_upstream_is_down(worker_with_bucket: Worker) -> None:
    """As for manifests."""
    worker = worker_with_bucket
    worker.s3.error = S3Error("down", "unavailable")
    worker.blobs.error = Unavailable("down")
    with pytest.raises(Unavailable):
        await worker.links.require(APP, LAYER)
    worker.s3.error = None
    worker.s3.links.add((APP.name, LAYER))
    if worker.bucket.is_open:  # else it has been found to work again
        assert await worker.has(APP, LAYER)
    with pytest.raises(Unavailable):
        await worker.links.require(OTHER, LAYER)


async def test_a_cache_that_is_deleted_gives_no_wrong_answer(worker: Worker) -> None:
    """The upstream is asked then."""
    manifest = store(worker, APP, LAYER)
    assert not await worker.has(APP, STRANGE)
    directory = worker.local.directories.root / "cache/manifests/up.test/app/sha256"
    (directory / manifest.digest.encoded).unlink()
    directory.rmdir()
    assert not await worker.has(APP, LAYER)
    worker.blobs.there.add(("up.test/app", LAYER))
    worker.links._unknown.clear()
    assert await worker.has(APP, LAYER)


@attrs.frozen
class SlowIndex:
    """Reading the manifests of a repository takes until `go_on` is set."""

    go_on: threading.Event


@pytest.fixture
def slow_index(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowIndex]:
    """Delay the reading of all manifests."""
    slow_index, refresh = SlowIndex(threading.Event()), worker.local.links.refresh

    def refresh_later(name: Name) -> None:
        assert slow_index.go_on.wait(EVENT_TIMEOUT_S)
        refresh(name)

    monkeypatch.setattr(worker.local.links, "refresh", refresh_later)
    monkeypatch.setattr(links_module, "INDEX_WAIT_S", 0.01)
    yield slow_index
    slow_index.go_on.set()


async def test_the_upstream_confirms_a_blob_while_many_manifests_are_read(
    worker: Worker, slow_index: SlowIndex
) -> None:
    """After a restart, a large repository may take long on a slow disk."""
    store(worker, APP, LAYER)
    worker.blobs.there.add(("up.test/app", LAYER))
    assert await worker.has(APP, LAYER)
    assert not slow_index.go_on.is_set()


@pytest.mark.parametrize("error", [None, Unavailable("down"), Denied("denied")])
async def test_no_other_answer_of_the_upstream_is_final_while_manifests_are_read(
    worker: Worker, slow_index: SlowIndex, error: RegistryError | None
) -> None:
    """What was pulled once is served although the upstream is down, or has deleted it."""
    store(worker, APP, LAYER)
    worker.blobs.error = error
    asked = asyncio.create_task(worker.has(APP, LAYER))
    await asyncio.wait_for(worker.blobs.is_asked.wait(), EVENT_TIMEOUT_S)
    slow_index.go_on.set()
    assert await asked
    worker.blobs.error = None
    assert not await worker.has(APP, STRANGE)


async def test_the_wait_for_the_manifests_is_limited(
    worker: Worker, slow_index: SlowIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may hang."""
    monkeypatch.setattr(links_module, "MAX_INDEX_WAIT_S", 0.01)
    assert not await worker.has(APP, LAYER)
    assert not slow_index.go_on.is_set()


# An upstream that decides about access


def decided(target: Target) -> Target:
    """The same repository of an upstream that decides about access."""
    return attrs.evolve(target, upstream=DECIDING)


@pytest.mark.parametrize("is_served", [False, True])
async def test_an_upstream_that_decides_must_confirm_what_a_manifest_names(
    worker_with_bucket: Worker, *, is_served: bool
) -> None:
    """Whoever may push to one repository may have named any blob in it, and the registry may not have looked."""
    worker = worker_with_bucket
    manifest = store(worker, APP, LAYER)
    worker.s3.links.add((APP.name, LAYER))
    if is_served:
        await worker.manifests.get(decided(APP), manifest.digest)
    assert not await worker.has(decided(APP), LAYER)
    assert worker.blobs.asked == {("up.test/app", LAYER): 1}
    assert await worker.has(APP, LAYER), "elsewhere it is enough"


async def test_what_an_upstream_that_decides_has_confirmed_holds_for_all_workers(
    make_worker: Callable[..., Worker],
) -> None:
    """It is asked once, and what it has confirmed is served while it is down; nothing else is."""
    first, second = make_worker(), make_worker()
    first.blobs.there.add(("up.test/app", LAYER))
    assert await first.has(decided(APP), LAYER)
    assert not await first.has(decided(OTHER), LAYER)
    second.blobs.error = Unavailable("down")
    assert await first.has(decided(APP), LAYER)
    assert await second.has(decided(APP), LAYER)
    assert first.blobs.asked["up.test/app", LAYER] == 1
    for target, digest in ((OTHER, LAYER), (APP, STRANGE)):
        with pytest.raises(Unavailable):
            await second.links.require(decided(target), digest)


async def test_concurrent_questions_to_an_upstream_that_decides_are_one(worker: Worker) -> None:
    """Many clients pull an image for the first time."""
    worker.blobs.there.add(("up.test/app", LAYER))
    assert await asyncio.gather(*(worker.has(decided(APP), LAYER) for _ in range(50))) == [True] * 50
    assert worker.blobs.asked == {("up.test/app", LAYER): 1}
