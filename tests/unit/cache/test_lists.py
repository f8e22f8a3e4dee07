"""The list path over several workers: one question, an owner that dies or freezes, what is kept and what is not.

Each worker here is a `Listings` of its own with its own sockets, in one process; the upstream is a script that counts.
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

from dockyard.cache import lists as listings_module
from dockyard.cache.lists import FoundList, Listings
from dockyard.cache.threads import Threads
from dockyard.config.settings import Auth, Upstream
from dockyard.errors import BadUpstream, ManifestUnknown, NameUnknown, RegistryError, TooManyRequests, Unavailable
from dockyard.oci.manifest import OCI_IMAGE, Descriptor
from dockyard.oci.reference import Digest, Name, Reference
from dockyard.routing import Target
from dockyard.storage.local import LocalStore
from dockyard.workers.peers import Peers, Question, Reply
from dockyard.workers.rendezvous import owners
from tests.support.fake_lists import descriptor

UPSTREAM = Upstream(prefix="up.test", registry="up.test", auth=Auth(type="anonymous"))
TARGET = Target(UPSTREAM, "img", Name.parse("up.test/img"))
SUBJECT = Digest.of(b"a subject")
TAGS = ["a", "b"]


class Origin:
    """The upstream of a test: what it has, how it fails, and what it was asked."""

    def __init__(self) -> None:
        self.tags = TAGS
        self.referrers = [descriptor(str(SUBJECT))]
        self.subjects: set[Reference] = set()
        self.error: RegistryError | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[str] = []

    def list_tags(self, repository: str) -> list[str]:
        self._answer("tags")
        return self.tags

    def list_referrers(self, repository: str, digest: Digest) -> list[dict[str, Any]]:
        self._answer("referrers")
        return self.referrers

    def head_manifest(self, repository: str, reference: Reference) -> Descriptor:
        self._answer("head")
        if reference not in self.subjects or not isinstance(reference, Digest):
            raise ManifestUnknown("no such manifest")
        return Descriptor(OCI_IMAGE, reference, 7)

    def _answer(self, what: str) -> None:
        self.asked.append(what)
        assert self.gate.wait(20)
        if self.error:
            raise self.error


@attrs.define
class Worker:
    """One worker's share of the deployment."""

    peers: Peers
    listings: Listings
    threads: Threads


class Deployment:
    """Workers over one directory and one origin, in the order in which they own the tags of TARGET."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.origin = Origin()
        self.tier = LocalStore(directory, "", 0)
        self.tier.create_directories()
        self.workers: list[Worker] = []

    async def open(self, shards: int, check_interval_s: float = 0.0, check_timeout_s: float = 0.0) -> None:
        for shard in owners(f"{TARGET.name}?tags", shards):
            peers, threads = Peers(self.directory / "run", shards), Threads()
            listings = Listings(self.tier, peers, {"up.test": self.origin}, threads, check_interval_s, check_timeout_s)

            async def answer(question: Question, reply: Reply, listings: Listings = listings) -> None:
                subject = Digest.parse(question.reference) if question.kind == "referrers" else None
                await listings.answer(TARGET, subject, reply)

            await peers.listen(shard, answer)
            self.workers.append(Worker(peers, listings, threads))

    async def tags(self, worker: int = 0) -> FoundList:
        return await self.workers[worker].listings.tags(TARGET)

    async def referrers(self, worker: int = 0) -> FoundList:
        return await self.workers[worker].listings.referrers(TARGET, SUBJECT)

    def kill_owner(self) -> None:
        """The owner stops answering, as a killed process does; the others move up in the list."""
        worker = self.workers.pop(0)
        worker.peers.close()
        worker.threads.close()

    def close(self) -> None:
        self.origin.gate.set()
        while self.workers:
            self.kill_owner()


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    """Give a deployment without workers yet."""
    deployment = Deployment(tmp_path)
    yield deployment
    deployment.close()


async def until(condition: Any) -> None:
    """Wait for what other tasks and threads do."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  nothing tells of what a thread has done
            await asyncio.sleep(0.005)


async def test_all_workers_share_one_question(deployment: Deployment) -> None:
    """Clients of every worker wait for one walk over the upstream's pages."""
    await deployment.open(3)
    deployment.origin.gate.clear()
    found = [asyncio.create_task(deployment.tags(number % 3)) for number in range(12)]
    await until(lambda: deployment.origin.asked)
    await asyncio.sleep(0.05)  # for a second question, which must not come
    deployment.origin.gate.set()
    assert [each.items for each in await asyncio.gather(*found)] == [TAGS] * 12
    assert deployment.origin.asked == ["tags"]


async def test_every_request_asks_anew(deployment: Deployment) -> None:
    """A tag that was pushed a moment ago is in the list."""
    await deployment.open(2)
    assert (await deployment.tags()).how == "miss"
    assert (await deployment.tags(1)).how == "checked"
    deployment.origin.tags = ["a", "b", "c"]
    found = await deployment.tags(1)
    assert (found.how, found.items) == ("changed", ["a", "b", "c"])


async def test_an_interval_spares_questions(deployment: Deployment) -> None:
    """Within it, the owner answers from what is kept, whoever asks."""
    await deployment.open(2, check_interval_s=3600)
    hows = [(await deployment.tags(number % 2)).how for number in range(4)]
    assert hows == ["miss", "hit", "hit", "hit"]
    assert deployment.origin.asked == ["tags"]


@pytest.mark.parametrize("error", [Unavailable("down"), BadUpstream("garbage"), TooManyRequests("slow down")])
async def test_what_is_kept_is_served_stale(deployment: Deployment, error: RegistryError) -> None:
    """With the reason, and the time of the last check, in every worker."""
    await deployment.open(2)
    began = time.time()
    await deployment.tags()
    await deployment.referrers()
    deployment.origin.error = error
    for worker in (0, 1):
        for found, items in (
            (await deployment.tags(worker), TAGS),
            (await deployment.referrers(worker), deployment.origin.referrers),
        ):
            assert (found.how, found.items, type(found.error)) == ("stale", items, type(error))
            assert found.checked_at == pytest.approx(began, abs=5)


async def test_without_a_copy_the_error_is_the_answer(deployment: Deployment) -> None:
    """Nothing is made up."""
    await deployment.open(2)
    deployment.origin.error = Unavailable("down")
    for worker in (0, 1):
        with pytest.raises(Unavailable):
            await deployment.tags(worker)


async def test_an_answer_is_no_outage(deployment: Deployment) -> None:
    """A repository that is gone is gone, though its list is kept."""
    await deployment.open(2)
    await deployment.tags()
    deployment.origin.error = NameUnknown("gone")
    for worker in (0, 1):
        with pytest.raises(NameUnknown):
            await deployment.tags(worker)


async def test_a_dead_owner_is_done_without(deployment: Deployment) -> None:
    """The next one asks, and keeps the list."""
    await deployment.open(2)
    deployment.kill_owner()
    assert (await deployment.tags()).how == "miss"
    assert (await deployment.tags()).how == "checked"


async def test_a_frozen_owner_is_done_without(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket takes connections and says nothing: the list is got, but not kept over what it may be writing."""
    monkeypatch.setattr("dockyard.workers.peers.ACKNOWLEDGE_TIMEOUT_S", 0.05)
    await deployment.open(2)
    deployment.kill_owner()
    (owner,) = owners(f"{TARGET.name}?tags", 2)[:1]
    path = deployment.directory / "run" / f"shard-{owner}.sock"
    path.unlink(missing_ok=True)
    here = os.getcwd()
    with socket.socket(socket.AF_UNIX) as frozen:
        os.chdir(path.parent)
        try:
            frozen.bind(path.name)
        finally:
            os.chdir(here)
        frozen.listen()
        assert (await deployment.tags()).how == "asked"
        assert deployment.tier.read_list(TARGET.name, None) is None


async def test_a_slow_walk_is_not_waited_for_with_a_copy(deployment: Deployment) -> None:
    """The old list at once, the walk to its end, and its result for the next."""
    await deployment.open(1, check_timeout_s=1.0)
    await deployment.tags()
    deployment.origin.tags = ["new"]
    deployment.origin.gate.clear()
    found = await deployment.tags()
    assert (found.how, found.items) == ("stale", TAGS)
    again = asyncio.create_task(deployment.tags())
    await asyncio.sleep(0)
    deployment.origin.gate.set()
    assert (await again).items == ["new"]
    assert deployment.origin.asked == ["tags", "tags"]


async def test_that_nothing_refers_is_kept_for_what_exists(deployment: Deployment) -> None:
    """Known to us or to the upstream: digests that somebody made up would fill the disk."""
    await deployment.open(1)
    deployment.origin.referrers = []
    assert (await deployment.referrers()).how == "asked"
    assert deployment.tier.read_list(TARGET.name, SUBJECT) is None
    deployment.origin.subjects = {SUBJECT}
    assert (await deployment.referrers()).how == "miss"
    assert (await deployment.referrers()).how == "checked"
    assert deployment.origin.asked.count("head") == 2


async def test_that_nothing_refers_any_more_is_kept(deployment: Deployment) -> None:
    """What was there before must not come back in an outage."""
    await deployment.open(1)
    assert len((await deployment.referrers()).items) == 1
    deployment.origin.referrers = []
    assert (await deployment.referrers()).how == "changed"
    deployment.origin.error = Unavailable("down")
    assert (await deployment.referrers()).items == []


@pytest.mark.parametrize("damage", [b"", b"{", b'{"tags": []}', b"\xff"])
async def test_a_damaged_copy_is_none(deployment: Deployment, damage: bytes) -> None:
    """It is asked for anew, and is not shown in an outage."""
    await deployment.open(1)
    deployment.tier.write_list(TARGET.name, None, damage)
    deployment.origin.error = Unavailable("down")
    with pytest.raises(Unavailable):
        await deployment.tags()
    deployment.origin.error = None
    assert (await deployment.tags()).items == TAGS


async def test_an_unchanged_list_is_written_seldom(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only to remember when it was checked."""
    await deployment.open(1)
    await deployment.tags()
    (path,) = [path for path in deployment.directory.rglob("*") if path.name == "_tags"]
    inode = path.stat().st_ino
    await deployment.tags()
    assert path.stat().st_ino == inode
    monkeypatch.setattr(listings_module, "CONFIRM_EVERY_S", -1.0)
    await deployment.tags()
    assert path.stat().st_ino != inode


async def test_a_list_that_is_too_long_is_refused(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker is told more than it would read."""
    monkeypatch.setattr(listings_module, "MAX_PAYLOAD_BYTES", 5)
    await deployment.open(1)
    with pytest.raises(BadUpstream):
        await deployment.tags()
