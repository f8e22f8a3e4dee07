"""Tags over several workers, within `check_interval`: who is asked, and until when a check is used again.

Each worker here is a `Tags` with its own socket, in one process; the upstream is a fake that records its requests.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest

from dockyard.cache import tags as tags_module
from dockyard.cache.manifests import Manifests
from dockyard.cache.stores import Stores
from dockyard.cache.tags import FoundTag, Tags
from dockyard.cache.threads import Threads
from dockyard.config.settings import Auth, Upstream
from dockyard.errors import RegistryError, Unavailable
from dockyard.oci.manifest import Descriptor, Manifest
from dockyard.oci.reference import Digest, Name, Reference, Tag
from dockyard.routing import Target
from dockyard.s3.bucket import Bucket
from dockyard.s3.outbox import Outbox
from dockyard.s3.publisher import Publisher
from dockyard.storage.local import LocalStore
from dockyard.workers.messages import ManifestRequest, PeerRequest, TagRequest
from dockyard.workers.peers import PeerConnection, Peers
from dockyard.workers.rendezvous import owners

UPSTREAM = Upstream(prefix="up.test", registry="up.test", auth=Auth(type="anonymous"))
TARGET = Target(UPSTREAM, "img", Name.parse("up.test/img"))
TAG = Tag("v1")
INTERVAL_S = 10.0
INDEX = "application/vnd.oci.image.index.v1+json"
OLD, NEW = (
    b'{"schemaVersion":2,"mediaType":"%s","manifests":[],"annotations":{"n":"%d"}}' % (INDEX.encode(), number)
    for number in (1, 2)
)


class Clock:
    """The clocks of `time`, which only the test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


class FakeUpstream:
    """An upstream with one tag. Each check takes `check_takes_s` by the clock; `checks` counts them."""

    def __init__(self, clock: Clock) -> None:
        self.body = OLD
        self.error: RegistryError | None = None
        self.check_takes_s = 0.0
        self.checks = 0
        self._clock = clock

    def head_manifest(
        self, repository: str, reference: Reference, deadline: float | None = None, *, has_copy: bool = False
    ) -> Descriptor:
        self.checks += 1
        if self.error:
            raise self.error
        self._clock.now += self.check_takes_s
        return Descriptor(INDEX, Digest.of(self.body), len(self.body))

    def get_manifest(self, repository: str, reference: Reference) -> Manifest:
        return Manifest.stored(self.body, Digest.of(self.body), None)


@attrs.define
class Worker:
    """One worker's share of the workers."""

    peers: Peers
    tags: Tags
    threads: Threads


class Workers:
    """Workers over one directory and one upstream, the owner of TAG first."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self.clock = clock
        self.upstream = FakeUpstream(clock)
        self.all: list[Worker] = []
        self._directory = directory
        self._store = LocalStore(directory, "", 0)
        self._store.create_directories()

    async def open(self, check_interval_s: float = INTERVAL_S) -> None:
        upstreams = {"up.test": self.upstream}
        for shard in owners(f"{TARGET.name}:{TAG}", 2):
            peers, threads = Peers(self._directory / "run", 2), Threads()
            publisher = Publisher(self._store, None, Outbox(self._directory / "unpublished"), 0, lambda _: True)
            stores = Stores(self._store, Bucket(None), publisher)
            manifests = Manifests(stores, peers, upstreams, threads)
            tags = Tags(manifests, stores, peers, upstreams, threads, check_interval_s, 5.0, 5.0)

            async def handle(
                request: PeerRequest, connection: PeerConnection, tags: Tags = tags, manifests: Manifests = manifests
            ) -> None:
                if isinstance(request, ManifestRequest):
                    await manifests.handle(TARGET, request, connection)
                else:
                    assert isinstance(request, TagRequest)
                    await tags.handle(TARGET, request, connection)

            await peers.listen(shard, handle)
            self.all.append(Worker(peers, tags, threads))

    async def get(self, worker: int) -> FoundTag:
        return await self.all[worker].tags.get(TARGET, TAG)

    def kill_owner(self) -> None:
        """The owner stops answering, as a killed process does; the other one is then the first."""
        worker = self.all.pop(0)
        worker.peers.close()
        worker.threads.close()

    def close(self) -> None:
        while self.all:
            self.kill_owner()


@pytest.fixture
async def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Workers]:
    """Two workers, the clock of whose tags only the test moves."""
    clock = Clock()
    monkeypatch.setattr(tags_module, "time", clock)
    workers = Workers(tmp_path, clock)
    yield workers
    workers.close()


async def test_within_the_interval_no_worker_asks_another(workers: Workers) -> None:
    """A worker that has asked the owner keeps the answer: it serves the tag while there is no owner."""
    await workers.open()
    assert [(await workers.get(number)).how for number in (0, 1, 1, 0)] == ["miss", "hit", "hit", "hit"]
    first = await workers.get(1)
    workers.kill_owner()
    found = await workers.get(0)
    assert (found.how, found.manifest.body, found.checked_at) == ("hit", OLD, first.checked_at)
    assert workers.upstream.checks == 1


@pytest.mark.parametrize("first", [0, 1])
async def test_the_interval_begins_with_the_check_of_the_owner(workers: Workers, first: int) -> None:
    """Whenever a worker has asked the owner, a tag that has moved is seen by all when the interval has passed."""
    await workers.open()
    await workers.get(first)
    workers.clock.now += INTERVAL_S - 1
    assert (await workers.get(1)).how == "hit"
    workers.upstream.body = NEW
    workers.clock.now += 1
    assert [((found := await workers.get(number)).how, found.manifest.body) for number in (1, 0)] == [
        ("changed", NEW),
        ("hit", NEW),
    ]
    assert workers.upstream.checks == 2


async def test_the_time_that_a_check_takes_does_not_make_an_answer_last_longer(workers: Workers) -> None:
    """The owner's interval begins when the check has ended, that of the worker that has asked not later."""
    await workers.open()
    workers.upstream.check_takes_s = 3.0
    await workers.get(1)
    ended_at = workers.clock.now
    workers.upstream.body = NEW
    workers.clock.now = ended_at + INTERVAL_S
    assert (await workers.get(1)).manifest.body == NEW


async def test_without_an_interval_every_request_is_a_check(workers: Workers) -> None:
    """Whichever worker gets it."""
    await workers.open(check_interval_s=0.0)
    assert [(await workers.get(number)).how for number in (0, 1, 1, 0)] == ["miss", "match", "match", "match"]
    assert workers.upstream.checks == 4


async def test_a_stale_tag_is_asked_for_again(workers: Workers) -> None:
    """What could not be checked is not kept as if it had been."""
    await workers.open()
    await workers.get(1)
    workers.clock.now += INTERVAL_S
    workers.upstream.error = Unavailable("down")
    assert [(await workers.get(1)).how for _ in range(2)] == ["stale", "stale"]
    workers.upstream.error, workers.upstream.body = None, NEW
    found = await workers.get(1)
    assert (found.how, found.manifest.body, found.error) == ("changed", NEW, None)
