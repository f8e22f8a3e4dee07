"""Lists over several workers: one upstream request, an owner that dies or freezes, what is kept and what is not.

Each worker here is a `Lists` with its own sockets, in one process; the upstream is a fake that records its requests.
"""

import asyncio
import os
import socket
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from dockyard.cache import lists as lists_module
from dockyard.cache.lists import FoundList, Lists
from dockyard.cache.threads import Threads
from dockyard.config.settings import Auth, Upstream
from dockyard.errors import BadUpstream, ManifestUnknown, NameUnknown, RegistryError, TooManyRequests, Unavailable
from dockyard.oci.manifest import OCI_IMAGE, Descriptor
from dockyard.oci.reference import Digest, Name, Reference
from dockyard.routing import Target
from dockyard.storage.local import LocalStore
from dockyard.workers.messages import PeerRequest, ReferrersRequest, TagListRequest
from dockyard.workers.peers import PeerConnection, Peers
from dockyard.workers.rendezvous import owners
from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.fake_lists import descriptor

UPSTREAM = Upstream(prefix="up.test", registry="up.test", auth=Auth(type="anonymous"))
TARGET = Target(UPSTREAM, "img", Name.parse("up.test/img"))
SUBJECT = Digest.of(b"a subject")
TAGS = ["a", "b"]


class FakeUpstream:
    """An upstream with the lists of one repository; `requests` are the operations that were called."""

    def __init__(self) -> None:
        self.tags = TAGS
        self.referrers = [descriptor(str(SUBJECT))]
        self.subjects: set[Reference] = set()
        self.error: RegistryError | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.requests: list[str] = []

    def list_tags(self, repository: str) -> list[str]:
        self._respond("tags")
        return self.tags

    def list_referrers(self, repository: str, digest: Digest) -> list[dict[str, Any]]:
        self._respond("referrers")
        return self.referrers

    def head_manifest(self, repository: str, reference: Reference) -> Descriptor:
        self._respond("head")
        if reference not in self.subjects or not isinstance(reference, Digest):
            raise ManifestUnknown("no such manifest")
        return Descriptor(OCI_IMAGE, reference, 7)

    def _respond(self, operation: str) -> None:
        self.requests.append(operation)
        assert self.gate.wait(EVENT_TIMEOUT_S)
        if self.error:
            raise self.error


@attrs.define
class Worker:
    """One worker's share of the workers."""

    peers: Peers
    lists: Lists
    threads: Threads


class Workers:
    """Workers over one directory and one upstream, in the order in which they own the tags of TARGET."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.upstream = FakeUpstream()
        self.store = LocalStore(directory, "", 0)
        self.store.create_directories()
        self.all: list[Worker] = []

    async def open(self, shards: int, check_interval_s: float = 0.0, check_timeout_s: float = 0.0) -> None:
        for shard in owners(f"{TARGET.name}?tags", shards):
            peers, threads = Peers(self.directory / "run", shards), Threads()
            lists = Lists(self.store, peers, {"up.test": self.upstream}, threads, check_interval_s, check_timeout_s)

            async def handle(request: PeerRequest, connection: PeerConnection, lists: Lists = lists) -> None:
                assert isinstance(request, TagListRequest | ReferrersRequest)
                await lists.handle(TARGET, request, connection)

            await peers.listen(shard, handle)
            self.all.append(Worker(peers, lists, threads))

    async def tags(self, worker: int = 0) -> FoundList:
        return await self.all[worker].lists.tags(TARGET)

    async def referrers(self, worker: int = 0) -> FoundList:
        return await self.all[worker].lists.referrers(TARGET, SUBJECT)

    def kill_owner(self) -> None:
        """The owner stops answering, as a killed process does; the others move up in the list."""
        worker = self.all.pop(0)
        worker.peers.close()
        worker.threads.close()

    def close(self) -> None:
        self.upstream.gate.set()
        while self.all:
            self.kill_owner()


@pytest.fixture
async def workers(tmp_path: Path) -> AsyncIterator[Workers]:
    """Give a workers without workers yet."""
    workers = Workers(tmp_path)
    yield workers
    workers.close()


async def until(condition: Any) -> None:
    """Wait for what other tasks and threads do."""
    async with asyncio.timeout(EVENT_TIMEOUT_S):
        while not condition():  # noqa: ASYNC110  nothing tells of what a thread has done
            await asyncio.sleep(0.005)


async def test_all_workers_share_one_question(workers: Workers) -> None:
    """Clients of every worker wait for one walk over the upstream's pages."""
    await workers.open(3)
    workers.upstream.gate.clear()
    found = [asyncio.create_task(workers.tags(number % 3)) for number in range(12)]
    await until(lambda: workers.upstream.requests)
    await asyncio.sleep(0.05)  # for a second question, which must not come
    workers.upstream.gate.set()
    assert [each.items for each in await asyncio.gather(*found)] == [TAGS] * 12
    assert workers.upstream.requests == ["tags"]


async def test_every_request_asks_anew(workers: Workers) -> None:
    """A tag that was pushed a moment ago is in the list."""
    await workers.open(2)
    assert (await workers.tags()).how == "miss"
    assert (await workers.tags(1)).how == "checked"
    workers.upstream.tags = ["a", "b", "c"]
    found = await workers.tags(1)
    assert (found.how, found.items) == ("changed", ["a", "b", "c"])


async def test_the_next_page_is_of_the_same_list(workers: Workers) -> None:
    """It is not asked for again, by whichever worker; the first page of the next reader is."""
    await workers.open(2)
    assert (await workers.tags()).how == "miss"
    workers.upstream.tags = ["a", "b", "c"]
    for worker in workers.all * 2:
        found = await worker.lists.tags(TARGET, is_continued=True)
        assert (found.how, found.items) == ("hit", TAGS)
    assert workers.upstream.requests == ["tags"]
    assert (await workers.tags(1)).items == ["a", "b", "c"]
    assert (await workers.all[0].lists.tags(TARGET, is_continued=True)).items == ["a", "b", "c"]


async def test_an_interval_spares_questions(workers: Workers) -> None:
    """Within it, the owner serves the kept list to all workers."""
    await workers.open(2, check_interval_s=3600)
    hows = [(await workers.tags(number % 2)).how for number in range(4)]
    assert hows == ["miss", "hit", "hit", "hit"]
    assert workers.upstream.requests == ["tags"]


@pytest.mark.parametrize("error", [Unavailable("down"), BadUpstream("garbage"), TooManyRequests("slow down")])
async def test_what_is_kept_is_served_stale(workers: Workers, error: RegistryError) -> None:
    """With the reason, and the time of the last check, in every worker."""
    await workers.open(2)
    began = time.time()
    await workers.tags()
    await workers.referrers()
    workers.upstream.error = error
    for worker in (0, 1):
        for found, items in (
            (await workers.tags(worker), TAGS),
            (await workers.referrers(worker), workers.upstream.referrers),
        ):
            assert (found.how, found.items, type(found.error)) == ("stale", items, type(error))
            assert found.checked_at == pytest.approx(began, abs=5)


async def test_without_a_copy_the_error_is_the_answer(workers: Workers) -> None:
    """Nothing is made up."""
    await workers.open(2)
    workers.upstream.error = Unavailable("down")
    for worker in (0, 1):
        with pytest.raises(Unavailable):
            await workers.tags(worker)


async def test_an_answer_is_no_outage(workers: Workers) -> None:
    """A repository that is gone is gone, though its list is kept."""
    await workers.open(2)
    await workers.tags()
    workers.upstream.error = NameUnknown("gone")
    for worker in (0, 1):
        with pytest.raises(NameUnknown):
            await workers.tags(worker)


async def test_a_dead_owner_is_done_without(workers: Workers) -> None:
    """The next one asks, and keeps the list."""
    await workers.open(2)
    workers.kill_owner()
    assert (await workers.tags()).how == "miss"
    assert (await workers.tags()).how == "checked"


async def test_a_frozen_owner_is_done_without(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket takes connections and says nothing: the list is got, but not kept over what it may be writing."""
    monkeypatch.setattr("dockyard.workers.peers.ACKNOWLEDGE_TIMEOUT_S", 0.05)
    await workers.open(2)
    workers.kill_owner()
    (owner,) = owners(f"{TARGET.name}?tags", 2)[:1]
    path = workers.directory / "run" / f"shard-{owner}.sock"
    path.unlink(missing_ok=True)
    here = os.getcwd()
    with socket.socket(socket.AF_UNIX) as frozen:
        os.chdir(path.parent)
        try:
            frozen.bind(path.name)
        finally:
            os.chdir(here)
        frozen.listen()
        assert (await workers.tags()).how == "asked"
        assert workers.store.read_list(TARGET.name, None) is None


async def test_a_slow_walk_is_not_waited_for_with_a_copy(workers: Workers) -> None:
    """The old list at once, the walk to its end, and its result for the next."""
    await workers.open(1, check_timeout_s=1.0)
    await workers.tags()
    workers.upstream.tags = ["new"]
    workers.upstream.gate.clear()
    found = await workers.tags()
    assert (found.how, found.items) == ("stale", TAGS)
    again = asyncio.create_task(workers.tags())
    await asyncio.sleep(0)
    workers.upstream.gate.set()
    assert (await again).items == ["new"]
    assert workers.upstream.requests == ["tags", "tags"]


async def test_that_nothing_refers_is_kept_for_what_exists(workers: Workers) -> None:
    """Known to us or to the upstream: digests that somebody made up would fill the disk."""
    await workers.open(1)
    workers.upstream.referrers = []
    assert (await workers.referrers()).how == "asked"
    assert workers.store.read_list(TARGET.name, SUBJECT) is None
    workers.upstream.subjects = {SUBJECT}
    assert (await workers.referrers()).how == "miss"
    assert (await workers.referrers()).how == "checked"
    assert workers.upstream.requests.count("head") == 2


async def test_that_nothing_refers_any_more_is_kept(workers: Workers) -> None:
    """What was there before must not come back in an outage."""
    await workers.open(1)
    assert len((await workers.referrers()).items) == 1
    workers.upstream.referrers = []
    assert (await workers.referrers()).how == "changed"
    workers.upstream.error = Unavailable("down")
    assert (await workers.referrers()).items == []


@pytest.mark.parametrize("damage", [b"", b"{", b'{"tags": []}', b"\xff"])
async def test_a_damaged_copy_is_none(workers: Workers, damage: bytes) -> None:
    """It is asked for anew, and is not shown in an outage."""
    await workers.open(1)
    workers.store.write_list(TARGET.name, None, damage)
    workers.upstream.error = Unavailable("down")
    with pytest.raises(Unavailable):
        await workers.tags()
    workers.upstream.error = None
    assert (await workers.tags()).items == TAGS


async def test_an_unchanged_list_is_written_seldom(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only to remember when it was checked."""
    await workers.open(1)
    await workers.tags()
    (path,) = [path for path in workers.directory.rglob("*") if path.name == "_tags"]
    inode = path.stat().st_ino
    await workers.tags()
    assert path.stat().st_ino == inode
    monkeypatch.setattr(lists_module, "CONFIRM_INTERVAL_S", -1.0)
    await workers.tags()
    assert path.stat().st_ino != inode


async def test_a_list_that_is_too_long_is_refused(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """No reply is longer than a worker accepts."""
    monkeypatch.setattr(lists_module, "MAX_BODY_BYTES", 5)
    await workers.open(1)
    with pytest.raises(BadUpstream):
        await workers.tags()
