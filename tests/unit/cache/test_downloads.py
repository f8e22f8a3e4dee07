"""Downloads over several workers: one fetch, owners that die, disks that fill up, bytes that are wrong.

Each worker here is a `Downloads` of its own with its own sockets, in one process; the upstream is a script that counts.
"""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest

from dockyard.cache.blobs import Blobs, OpenedBlob
from dockyard.cache.downloads import Downloads
from dockyard.cache.readers import Reader
from dockyard.cache.stores import Stores
from dockyard.cache.threads import Threads
from dockyard.config.settings import Auth, Upstream
from dockyard.errors import BadUpstream, BlobUnknown, RegistryError, Unavailable
from dockyard.oci.reference import Digest, Name
from dockyard.routing import Target
from dockyard.s3.bucket import Bucket
from dockyard.s3.outbox import Outbox
from dockyard.s3.publisher import Publisher
from dockyard.storage import partial_file as partial_file_module
from dockyard.storage.local import LocalStore
from dockyard.workers.peers import Answerer, Peers, Question, Reply
from dockyard.workers.rendezvous import owners

UPSTREAM = Upstream(prefix="up.test", registry="up.test", auth=Auth(type="anonymous"))
TARGET = Target(UPSTREAM, "img", Name.parse("up.test/img"))
BODY = os.urandom(3_000_000)
DIGEST = Digest.of(BODY)


class Body:
    """A source that gives `body`, waits at `gate` before the byte `hold`, and breaks at the byte `cut`."""

    def __init__(self, body: bytes, start: int, *, hold: int | None, gate: threading.Event, cut: int | None) -> None:
        self.size: int | None = len(body)
        self.start = start
        self._body, self._at = body, start
        self._hold, self._gate, self._cut = hold, gate, cut

    def read(self, amount: int) -> bytes:
        end = self._at + amount
        if self._hold is not None and self._at >= self._hold:
            assert self._gate.wait(20)
        elif self._hold is not None:
            end = min(end, self._hold)
        if self._cut is not None:
            if self._at >= self._cut:
                raise Unavailable("cut")
            end = min(end, self._cut)
        chunk = self._body[self._at : end]
        self._at += len(chunk)
        return chunk

    def close(self) -> None:
        pass

    def abort(self) -> None:
        self._gate.set()


class Origin:
    """The upstream of a test: what it has, how it behaves, and from which bytes it was asked."""

    def __init__(self) -> None:
        self.body = BODY
        self.error: RegistryError | None = None
        self.hold: int | None = None
        self.cuts: list[int] = []
        self.gate = threading.Event()
        self.starts: list[int] = []

    def open_blob(self, repository: str, digest: Digest, start: int = 0) -> Body:
        self.starts.append(start)
        if self.error:
            raise self.error
        cut = self.cuts.pop(0) if self.cuts else None
        return Body(self.body, start, hold=self.hold, gate=self.gate, cut=cut)

    def head_blob(self, repository: str, digest: Digest) -> int:
        return len(self.body)


@attrs.define
class Worker:
    """One worker's share of the deployment."""

    peers: Peers
    downloads: Downloads
    blobs: Blobs
    threads: Threads

    def die(self) -> None:
        """Stop answering, as a killed process does: the listener and all of its connections are gone."""
        self.downloads.stop()
        self.peers.close()


class Deployment:
    """Workers over one directory and one origin, in the order in which they own DIGEST."""

    def __init__(self, directory: Path) -> None:
        self.origin = Origin()
        self.directory = directory
        self.workers: list[Worker] = []

    async def start(self, count: int) -> None:
        for shard in owners(str(DIGEST), count):
            tier = LocalStore(self.directory, "cache/", 0)
            tier.create_directories()
            peers, threads = Peers(self.directory / "run", count), Threads()
            publisher = Publisher(tier, None, Outbox(self.directory / "unpublished"), 0, lambda _: True)
            stores = Stores(tier, Bucket(None), publisher)
            downloads = Downloads(stores, peers, {"up.test": self.origin}, threads)
            await peers.listen(shard, answerer(downloads))
            blobs = Blobs(stores, downloads, {"up.test": self.origin}, threads, redirects=False)
            self.workers.append(Worker(peers, downloads, blobs, threads))

    def stored(self) -> bytes | None:
        path = self.directory / "cache/blobs/sha256" / DIGEST.encoded[:2] / DIGEST.encoded
        return path.read_bytes() if path.exists() else None

    def partial(self) -> list[str]:
        return os.listdir(self.directory / "partial")

    def close(self) -> None:
        self.origin.gate.set()
        for worker in self.workers:
            worker.downloads.stop()
            worker.peers.close()
            worker.threads.close()


def answerer(downloads: Downloads) -> Answerer:
    """Answer questions about blobs, as a worker does."""

    async def answer(question: Question, reply: Reply) -> None:
        await downloads.answer(TARGET, Digest.parse(question.reference), question, reply)

    return answer


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    """Three workers; the first of `workers` owns DIGEST."""
    deployment = Deployment(tmp_path)
    await deployment.start(3)
    yield deployment
    deployment.close()


async def read_all(reader: Reader, position: int = 0, until: int | None = None) -> bytes:
    """Everything from a position to the end, or until a byte."""
    parts = []
    end = reader.size if until is None else until
    while position < end:
        buffer = bytearray(min(100_000, end - position))
        count = await reader.read_into(buffer, position, len(buffer))
        parts.append(bytes(buffer[:count]))
        position += count
    return b"".join(parts)


async def open_blob(worker: Worker) -> OpenedBlob:
    """Open the blob for reading."""
    opened = await worker.blobs.open(TARGET, DIGEST)
    assert isinstance(opened, OpenedBlob)
    return opened


async def pull(worker: Worker) -> bytes:
    """Open and read the blob."""
    opened = await open_blob(worker)
    try:
        return await read_all(opened.reader)
    finally:
        opened.reader.close()


async def settled(deployment: Deployment) -> None:
    """Wait until every download has landed and is kept."""
    for worker in deployment.workers:
        while worker.downloads.find(DIGEST):  # noqa: ASYNC110  polled from outside on purpose
            await asyncio.sleep(0.005)


async def test_many_readers_on_all_workers_cost_one_fetch(deployment: Deployment) -> None:
    """Thirty readers over three workers, one request upstream, all bytes right."""
    bodies = await asyncio.gather(*(pull(deployment.workers[number % 3]) for number in range(30)))
    assert set(bodies) == {BODY}
    assert deployment.origin.starts == [0]
    await settled(deployment)
    assert deployment.stored() == BODY
    assert deployment.partial() == []


async def test_the_first_bytes_come_while_the_fetch_runs(deployment: Deployment) -> None:
    """Readers of every worker read what has landed, from byte 0, before the rest is there."""
    deployment.origin.hold = 2_000_000
    for worker in deployment.workers:
        opened = await open_blob(worker)
        assert await read_all(opened.reader, 0, 1_900_000) == BODY[:1_900_000]
        opened.reader.close()
    deployment.origin.gate.set()
    assert deployment.origin.starts == [0]


async def test_a_fetch_goes_on_without_clients(deployment: Deployment) -> None:
    """The only reader leaves, and the blob is stored all the same."""
    deployment.origin.hold = 2_000_000
    opened = await open_blob(deployment.workers[1])
    opened.reader.close()
    deployment.origin.gate.set()
    await settled(deployment)
    assert deployment.stored() == BODY


async def test_a_broken_fetch_is_resumed_at_its_byte(deployment: Deployment) -> None:
    """Each break costs one request from the byte reached, and no reader notices."""
    deployment.origin.cuts = [30_000, 1_500_000, 2_990_000]
    assert await pull(deployment.workers[2]) == BODY
    assert deployment.origin.starts == [0, 30_000, 1_500_000, 2_990_000]


async def test_readers_of_a_dead_owner_finish(deployment: Deployment) -> None:
    """The owner dies in the middle; the next shard takes over its partial file and fetches the rest."""
    deployment.origin.hold = 2_000_000
    opened = await open_blob(deployment.workers[1])
    begin = await read_all(opened.reader, 0, 1_000_000)
    other = await open_blob(deployment.workers[2])
    deployment.origin.hold = None
    deployment.workers[0].die()
    assert begin + await read_all(opened.reader, 1_000_000) == BODY
    assert await read_all(other.reader) == BODY
    assert len(deployment.origin.starts) == 2
    for reader in (opened.reader, other.reader):
        reader.close()


async def test_wrong_bytes_never_complete_and_are_not_stored(deployment: Deployment) -> None:
    """A body with a flipped bit at its end is cut before its last bytes on every worker."""
    deployment.origin.body = BODY[:-1] + bytes([BODY[-1] ^ 1])
    for worker in deployment.workers:
        opened = await open_blob(worker)
        with pytest.raises(BadUpstream):
            await read_all(opened.reader)
        opened.reader.close()
        await settled(deployment)
    assert deployment.stored() is None
    assert deployment.partial() == []


async def test_a_small_wrong_blob_is_an_error_before_its_first_byte(deployment: Deployment) -> None:
    """Up to 1 MiB nothing is sent before it is verified."""
    deployment.origin.body = b"<html>"
    with pytest.raises(BadUpstream):
        await open_blob(deployment.workers[1])


async def test_an_answer_of_the_upstream_reaches_the_other_workers(deployment: Deployment) -> None:
    """404 upstream is 404 everywhere, asked once for each time."""
    deployment.origin.error = BlobUnknown("no such blob")
    with pytest.raises(BlobUnknown):
        await deployment.workers[2].blobs.open(TARGET, DIGEST)
    assert deployment.origin.starts == [0]


async def test_an_upstream_that_stays_away_leaves_its_bytes_for_the_next_try(deployment: Deployment) -> None:
    """After giving up, the next request goes on where the last one stopped."""
    deployment.origin.cuts = [1_500_000] * 6
    opened = await open_blob(deployment.workers[0])
    with pytest.raises(Unavailable):
        await read_all(opened.reader)
    opened.reader.close()
    await settled(deployment)
    asked = len(deployment.origin.starts)
    deployment.origin.cuts = []
    assert await pull(deployment.workers[1]) == BODY
    assert deployment.origin.starts[asked:] == [1_500_000]


@pytest.mark.parametrize("full_at", [0, 1_500_000])
async def test_a_full_disk_fails_nobody(deployment: Deployment, full_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reader gets the blob through memory; nothing is stored; each worker fetches for its own."""
    write = os.pwrite

    def fail_from(fd: int, chunk: bytes, offset: int) -> int:
        if offset + len(chunk) > full_at:
            raise OSError(28, "No space left on device")
        return write(fd, chunk, offset)

    monkeypatch.setattr(partial_file_module.os, "pwrite", fail_from)
    bodies = await asyncio.gather(*(pull(deployment.workers[number % 3]) for number in range(9)))
    assert set(bodies) == {BODY}
    assert len(deployment.origin.starts) <= 3
    await settled(deployment)
    assert deployment.stored() is None
    assert deployment.partial() == []


async def test_to_wait_for_ones_turn_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All threads for fills are taken for longer than a download may stand still: who waits is served in the end."""
    monkeypatch.setattr("dockyard.cache.threads.FILL_THREADS", 1)
    monkeypatch.setattr("dockyard.cache.download.LOOK_EVERY_S", 0.05)
    monkeypatch.setattr("dockyard.cache.download.NO_PROGRESS_TIMEOUT_S", 0.4)
    monkeypatch.setattr("dockyard.cache.downloads.FOLLOW_TIMEOUT_S", 0.4)
    deployment = Deployment(tmp_path)
    await deployment.start(2)
    is_free = threading.Event()
    try:
        other = asyncio.create_task(deployment.workers[0].threads.fill(is_free.wait, 20))
        pulls = [asyncio.create_task(pull(worker)) for worker in deployment.workers]
        await asyncio.wait(pulls, timeout=1.0)
        assert not any(each.done() for each in pulls)
        is_free.set()
        assert await asyncio.gather(*pulls) == [BODY, BODY]
        assert await other
    finally:
        is_free.set()
        deployment.close()
    assert deployment.origin.starts == [0]


async def test_a_frozen_owner_is_done_without(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner that holds its socket and answers nothing delays a pull by its time limit only."""
    monkeypatch.setattr("dockyard.workers.peers.ACKNOWLEDGE_TIMEOUT_S", 0.05)
    deployment.workers[0].peers.close()
    owner = deployment.workers[0].peers.shard
    assert owner is not None

    address = deployment.directory / "run" / f"shard-{owner}.sock"
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(str(address))
        frozen.listen()
        assert await pull(deployment.workers[2]) == BODY
    assert deployment.origin.starts == [0]
