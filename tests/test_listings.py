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

from dockyard.cache import listings as listings_module
from dockyard.cache.bridge import Threads
from dockyard.cache.listings import FoundList, Listings
from dockyard.config import Auth, Upstream
from dockyard.errors import BadUpstream, ManifestUnknown, NameUnknown, RegistryError, TooManyRequests, Unavailable
from dockyard.oci.manifest import OCI_IMAGE, Descriptor
from dockyard.oci.reference import Digest, Name, Reference
from dockyard.routing import Target
from dockyard.storage.local import LocalTier
from dockyard.workers.peers import Peers, Question, Reply
from dockyard.workers.shards import owners
from tests.listings import descriptor

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
    """One worker's share of the house."""

    peers: Peers
    listings: Listings
    threads: Threads


class House:
    """Workers over one directory and one origin, in the order in which they own the tags of TARGET."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.origin = Origin()
        self.tier = LocalTier(directory, "", 0)
        self.tier.prepare()
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
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """Give a house without workers yet."""
    house = House(tmp_path)
    yield house
    house.close()


async def until(condition: Any) -> None:
    """Wait for what other tasks and threads do."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  nothing tells of what a thread has done
            await asyncio.sleep(0.005)


async def test_all_workers_share_one_question(house: House) -> None:
    """Clients of every worker wait for one walk over the upstream's pages."""
    await house.open(3)
    house.origin.gate.clear()
    found = [asyncio.create_task(house.tags(number % 3)) for number in range(12)]
    await until(lambda: house.origin.asked)
    await asyncio.sleep(0.05)  # for a second question, which must not come
    house.origin.gate.set()
    assert [each.items for each in await asyncio.gather(*found)] == [TAGS] * 12
    assert house.origin.asked == ["tags"]


async def test_every_request_asks_anew(house: House) -> None:
    """A tag that was pushed a moment ago is in the list."""
    await house.open(2)
    assert (await house.tags()).how == "miss"
    assert (await house.tags(1)).how == "checked"
    house.origin.tags = ["a", "b", "c"]
    found = await house.tags(1)
    assert (found.how, found.items) == ("changed", ["a", "b", "c"])


async def test_an_interval_spares_questions(house: House) -> None:
    """Within it, the owner answers from what is kept, whoever asks."""
    await house.open(2, check_interval_s=3600)
    hows = [(await house.tags(number % 2)).how for number in range(4)]
    assert hows == ["miss", "hit", "hit", "hit"]
    assert house.origin.asked == ["tags"]


@pytest.mark.parametrize("error", [Unavailable("down"), BadUpstream("garbage"), TooManyRequests("slow down")])
async def test_what_is_kept_is_served_stale(house: House, error: RegistryError) -> None:
    """With the reason, and the time of the last check, in every worker."""
    await house.open(2)
    began = time.time()
    await house.tags()
    await house.referrers()
    house.origin.error = error
    for worker in (0, 1):
        for found, items in ((await house.tags(worker), TAGS), (await house.referrers(worker), house.origin.referrers)):
            assert (found.how, found.items, type(found.error)) == ("stale", items, type(error))
            assert found.checked_at == pytest.approx(began, abs=5)


async def test_without_a_copy_the_error_is_the_answer(house: House) -> None:
    """Nothing is made up."""
    await house.open(2)
    house.origin.error = Unavailable("down")
    for worker in (0, 1):
        with pytest.raises(Unavailable):
            await house.tags(worker)


async def test_an_answer_is_no_outage(house: House) -> None:
    """A repository that is gone is gone, though its list is kept."""
    await house.open(2)
    await house.tags()
    house.origin.error = NameUnknown("gone")
    for worker in (0, 1):
        with pytest.raises(NameUnknown):
            await house.tags(worker)


async def test_a_dead_owner_is_done_without(house: House) -> None:
    """The next one asks, and keeps the list."""
    await house.open(2)
    house.kill_owner()
    assert (await house.tags()).how == "miss"
    assert (await house.tags()).how == "checked"


async def test_a_frozen_owner_is_done_without(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket takes connections and says nothing: the list is got, but not kept over what it may be writing."""
    monkeypatch.setattr("dockyard.workers.peers.ACKNOWLEDGE_TIMEOUT_S", 0.05)
    await house.open(2)
    house.kill_owner()
    (owner,) = owners(f"{TARGET.name}?tags", 2)[:1]
    path = house.directory / "run" / f"shard-{owner}.sock"
    path.unlink(missing_ok=True)
    here = os.getcwd()
    with socket.socket(socket.AF_UNIX) as frozen:
        os.chdir(path.parent)
        try:
            frozen.bind(path.name)
        finally:
            os.chdir(here)
        frozen.listen()
        assert (await house.tags()).how == "asked"
        assert house.tier.read_list(TARGET.name, None) is None


async def test_a_slow_walk_is_not_waited_for_with_a_copy(house: House) -> None:
    """The old list at once, the walk to its end, and its result for the next."""
    await house.open(1, check_timeout_s=1.0)
    await house.tags()
    house.origin.tags = ["new"]
    house.origin.gate.clear()
    found = await house.tags()
    assert (found.how, found.items) == ("stale", TAGS)
    again = asyncio.create_task(house.tags())
    await asyncio.sleep(0)
    house.origin.gate.set()
    assert (await again).items == ["new"]
    assert house.origin.asked == ["tags", "tags"]


async def test_that_nothing_refers_is_kept_for_what_exists(house: House) -> None:
    """Known to us or to the upstream: digests that somebody made up would fill the disk."""
    await house.open(1)
    house.origin.referrers = []
    assert (await house.referrers()).how == "asked"
    assert house.tier.read_list(TARGET.name, SUBJECT) is None
    house.origin.subjects = {SUBJECT}
    assert (await house.referrers()).how == "miss"
    assert (await house.referrers()).how == "checked"
    assert house.origin.asked.count("head") == 2


async def test_that_nothing_refers_any_more_is_kept(house: House) -> None:
    """What was there before must not come back in an outage."""
    await house.open(1)
    assert len((await house.referrers()).items) == 1
    house.origin.referrers = []
    assert (await house.referrers()).how == "changed"
    house.origin.error = Unavailable("down")
    assert (await house.referrers()).items == []


@pytest.mark.parametrize("damage", [b"", b"{", b'{"tags": []}', b"\xff"])
async def test_a_damaged_copy_is_none(house: House, damage: bytes) -> None:
    """It is asked for anew, and is not shown in an outage."""
    await house.open(1)
    house.tier.write_list(TARGET.name, None, damage)
    house.origin.error = Unavailable("down")
    with pytest.raises(Unavailable):
        await house.tags()
    house.origin.error = None
    assert (await house.tags()).items == TAGS


async def test_an_unchanged_list_is_written_seldom(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only to remember when it was checked."""
    await house.open(1)
    await house.tags()
    (path,) = [path for path in house.directory.rglob("*") if path.name == "_tags"]
    inode = path.stat().st_ino
    await house.tags()
    assert path.stat().st_ino == inode
    monkeypatch.setattr(listings_module, "CONFIRM_EVERY_S", -1.0)
    await house.tags()
    assert path.stat().st_ino != inode


async def test_a_list_that_is_too_long_is_refused(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker is told more than it would read."""
    monkeypatch.setattr(listings_module, "MAX_PAYLOAD_BYTES", 5)
    await house.open(1)
    with pytest.raises(BadUpstream):
        await house.tags()
