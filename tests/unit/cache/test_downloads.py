"""Downloads over several workers: one fetch, owners that die, full disks, wrong bytes.

Each worker here is a `Downloads` with its own sockets, in one process; the upstream is a fake that records requests.
"""

import asyncio
import contextlib
import errno
import json
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import attrs
import pytest

from dockyard.cache.blobs import Blobs, OpenedBlob
from dockyard.cache.download_job import DownloadJob
from dockyard.cache.downloads import Downloads
from dockyard.cache.readers import MAX_FIRST_BYTES, Reader
from dockyard.cache.stores import Stores
from dockyard.cache.threads import Threads
from dockyard.config.settings import Auth, Upstream
from dockyard.errors import AccessDenied, BadUpstream, BlobUnknown, FailureDetails, RegistryError, Unavailable
from dockyard.oci.login import Login
from dockyard.oci.reference import Digest, Name
from dockyard.routing import Target
from dockyard.s3.bucket import Bucket
from dockyard.s3.outbox import Outbox
from dockyard.s3.publisher import Publisher
from dockyard.storage import partial_file as partial_file_module
from dockyard.storage.eviction import SizeCap
from dockyard.storage.local import LocalStore
from dockyard.storage.partial_file import NoReadersLeft, PartialFile
from dockyard.storage.verified_files import VerifiedFiles
from dockyard.workers.messages import BlobRequest, PeerRequest, PiecesReply, PiecesRequest, SizeRequest
from dockyard.workers.peers import Handler, PeerConnection, Peers
from dockyard.workers.rendezvous import owners
from tests.support.busy_machine import EVENT_TIMEOUT_S

UPSTREAM = Upstream(prefix="up.test", registry="up.test", auth=Auth(type="anonymous"))
TARGET = Target(UPSTREAM, "img", Name.parse("up.test/img"))
BODY = os.urandom(3_000_000)
DIGEST = Digest.of(BODY)


class FakeBody:
    """A body that gives `body`, waits at `gate` before the byte `hold`, and breaks at the byte `cut`."""

    is_web_page = False
    encoding = ""
    details = FailureDetails("registry.test:443", "HTTP 200 OK", "response")

    def __init__(self, body: bytes, start: int, *, hold: int | None, gate: threading.Event, cut: int | None) -> None:
        self.size: int | None = len(body)
        self.start = start
        self._body, self._at = body, start
        self._hold, self._gate, self._cut = hold, gate, cut

    def read(self, amount: int) -> bytes:
        end = self._at + amount
        if self._hold is not None and self._at >= self._hold:
            assert self._gate.wait(EVENT_TIMEOUT_S)
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


class FakeUpstream:
    """An upstream with one blob; `starts` are the offsets that were requested."""

    def __init__(self) -> None:
        self.body = BODY
        self.error: RegistryError | None = None
        self.hold: int | None = None
        self.cuts: list[int] = []
        self.gate = threading.Event()
        self.starts: list[int] = []
        self.tells_size = True
        self.head_size: int | RegistryError = len(BODY)  # by HEAD
        self.heads = 0

    def open_blob(self, repository: str, digest: Digest, start: int = 0, *_: object) -> FakeBody:
        self.starts.append(start)
        if self.error:
            raise self.error
        cut = self.cuts.pop(0) if self.cuts else None
        body = FakeBody(self.body, start, hold=self.hold, gate=self.gate, cut=cut)
        if not self.tells_size:
            body.size = None
        return body

    def head_blob(self, repository: str, digest: Digest) -> int:
        self.heads += 1
        if isinstance(self.head_size, RegistryError):
            raise self.head_size
        return self.head_size


@attrs.define
class Worker:
    """One worker's share of the workers."""

    peers: Peers
    downloads: Downloads
    blobs: Blobs
    threads: Threads

    def die(self) -> None:
        """Stop answering, as a killed process does: the listener and all of its connections are gone."""
        self.downloads.stop()
        self.peers.close()


class Workers:
    """Workers over one directory and one upstream, in the order in which they own DIGEST."""

    def __init__(self, directory: Path) -> None:
        self.upstream = FakeUpstream()
        self.directory = directory
        self.all: list[Worker] = []
        self.shards: list[int] = []
        self.verified_files = VerifiedFiles()

    async def start(self, count: int) -> None:
        self.shards = list(owners(str(DIGEST), count))
        for shard in self.shards:
            store = LocalStore(self.directory, "cache/", 0, "start", self.verified_files)
            store.create_directories()
            peers = Peers(self.directory / "run", count, lambda login: login.username)
            threads = Threads()
            publisher = Publisher(store, None, Outbox(self.directory / "unpublished"), 0, lambda _: True)
            stores = Stores(store, Bucket(None), publisher)
            downloads = Downloads(stores, peers, {"up.test": self.upstream}, threads)
            blobs = Blobs(stores, downloads, peers, {"up.test": self.upstream}, threads, redirects=False)
            await peers.listen(shard, handler(downloads, blobs))
            self.store = store
            self.all.append(Worker(peers, downloads, blobs, threads))

    def stored(self) -> bytes | None:
        path = self.directory / "cache/blobs/sha256" / DIGEST.encoded[:2] / DIGEST.encoded
        return path.read_bytes() if path.exists() else None

    def partial(self) -> list[str]:
        return os.listdir(self.directory / "partial")

    def close(self) -> None:
        self.upstream.gate.set()
        for worker in self.all:
            worker.downloads.stop()
            worker.peers.close()
            worker.threads.close()


def handler(downloads: Downloads, blobs: Blobs) -> Handler:
    """Handle requests for blobs and sizes, as a worker does."""

    async def handle(request: PeerRequest, connection: PeerConnection) -> None:
        assert isinstance(request, BlobRequest | PiecesRequest | SizeRequest)
        target = Target(UPSTREAM, request.repository.path, request.repository.name)
        if username := request.repository.login:
            target = target_of(next(login for login in (ANN, BOB) if login.username == username))
        if isinstance(request, BlobRequest):
            await downloads.handle(target, request, connection)
        elif isinstance(request, PiecesRequest):
            await downloads.handle_pieces(request, connection)
        else:
            await blobs.handle(target, request, connection)

    return handle


@pytest.fixture
async def workers(tmp_path: Path) -> AsyncIterator[Workers]:
    """Three workers; the first of `workers` owns DIGEST."""
    workers = Workers(tmp_path)
    await workers.start(3)
    yield workers
    workers.close()


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


async def settled(workers: Workers) -> None:
    """Wait until every download has landed and is kept."""
    for worker in workers.all:
        while worker.downloads.find(DIGEST):  # noqa: ASYNC110  polled from outside on purpose
            await asyncio.sleep(0.005)


async def test_many_readers_on_all_workers_cost_one_fetch(workers: Workers) -> None:
    """Thirty readers over three workers, one request upstream, all bytes right."""
    bodies = await asyncio.gather(*(pull(workers.all[number % 3]) for number in range(30)))
    assert set(bodies) == {BODY}
    assert workers.upstream.starts == [0]
    await settled(workers)
    assert workers.stored() == BODY
    assert workers.partial() == []


async def test_the_first_bytes_come_while_the_fetch_runs(workers: Workers) -> None:
    """Readers of every worker read what has landed, from byte 0, before the rest is there."""
    workers.upstream.hold = 2_000_000
    for worker in workers.all:
        opened = await open_blob(worker)
        assert await read_all(opened.reader, 0, 1_900_000) == BODY[:1_900_000]
        opened.reader.close()
    workers.upstream.gate.set()
    assert workers.upstream.starts == [0]


@pytest.mark.parametrize("number", [0, 1], ids=["owner", "another worker"])
async def test_the_first_bytes_are_few(workers: Workers, number: int) -> None:
    """However many there are: so those who wait for theirs get them soon. All others come at once."""
    workers.upstream.hold = 2_000_000
    opened = await open_blob(workers.all[number])
    assert await read_all(opened.reader, 0, 1_900_000) == BODY[:1_900_000]
    _, first = await opened.reader.find(0)
    _, others = await opened.reader.find(first)
    assert first == MAX_FIRST_BYTES
    assert others >= 1_900_000 - first
    opened.reader.close()
    workers.upstream.gate.set()


async def test_a_fetch_goes_on_without_clients(workers: Workers) -> None:
    """The only reader leaves, and the blob is stored all the same."""
    workers.upstream.hold = 2_000_000
    opened = await open_blob(workers.all[1])
    opened.reader.close()
    workers.upstream.gate.set()
    await settled(workers)
    assert workers.stored() == BODY


async def test_a_broken_fetch_is_resumed_at_its_byte(workers: Workers) -> None:
    """Each break costs one request from the byte reached, and no reader notices."""
    workers.upstream.cuts = [30_000, 1_500_000, 2_990_000]
    assert await pull(workers.all[2]) == BODY
    assert workers.upstream.starts == [0, 30_000, 1_500_000, 2_990_000]


async def test_readers_of_a_dead_owner_finish(workers: Workers) -> None:
    """The owner dies in the middle; the next shard takes over its partial file and fetches the rest."""
    workers.upstream.hold = 2_000_000
    opened = await open_blob(workers.all[1])
    begin = await read_all(opened.reader, 0, 1_000_000)
    other = await open_blob(workers.all[2])
    workers.upstream.hold = None
    workers.all[0].die()
    assert begin + await read_all(opened.reader, 1_000_000) == BODY
    assert await read_all(other.reader) == BODY
    assert len(workers.upstream.starts) == 2
    for reader in (opened.reader, other.reader):
        reader.close()


class Claims:
    """Lets each claim of a partial file wait until `may_claim` is set, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_claim = threading.Event()
        self.count = 0
        claim = LocalStore.claim_partial_file

        def claim_late(store: LocalStore, digest: Digest) -> PartialFile | None:
            self.count += 1
            assert self.may_claim.wait(EVENT_TIMEOUT_S)
            return claim(store, digest)

        monkeypatch.setattr(LocalStore, "claim_partial_file", claim_late)

    async def wait_for_first(self) -> None:
        while not self.count:  # noqa: ASYNC110  counted in a thread
            await asyncio.sleep(0.005)


async def test_pieces_of_a_download_that_has_not_begun(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that asks the owner for pieces before it has its partial file waits for them."""
    claims = Claims(monkeypatch)
    owner, _, asking = workers.all
    reading = asyncio.create_task(pull(owner))
    await claims.wait_for_first()
    request = PiecesRequest(asking.peers.repository_of(TARGET), DIGEST, 0, 1_000_000)
    reply = asyncio.create_task(asking.peers.request(workers.shards[0], request, PiecesReply))
    await asyncio.sleep(0.1)
    assert not reply.done()
    claims.may_claim.set()
    assert (await reply).stop > 0
    assert await reading == BODY


async def test_an_owner_that_takes_over_is_waited_for(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Followers of a dead owner follow the next one, also while it has not opened the partial file yet."""
    workers.upstream.hold = 2_000_000
    opened = [await open_blob(worker) for worker in workers.all[1:]]
    begun = [await read_all(each.reader, 0, 1_000_000) for each in opened]
    workers.upstream.hold = None
    claims = Claims(monkeypatch)
    workers.all[0].die()
    await claims.wait_for_first()
    await asyncio.sleep(0.1)
    assert claims.count == 1
    claims.may_claim.set()
    rest = await asyncio.gather(*(read_all(each.reader, 1_000_000) for each in opened))
    assert [begin + end for begin, end in zip(begun, rest, strict=True)] == [BODY, BODY]
    for each in opened:
        each.reader.close()


async def test_wrong_bytes_never_complete_and_are_not_stored(workers: Workers) -> None:
    """A body with a flipped bit at its end is cut before its last bytes on every worker."""
    workers.upstream.body = BODY[:-1] + bytes([BODY[-1] ^ 1])
    for worker in workers.all:
        opened = await open_blob(worker)
        with pytest.raises(BadUpstream):
            await read_all(opened.reader)
        opened.reader.close()
        await settled(workers)
    assert workers.stored() is None
    assert workers.partial() == []


async def test_a_small_wrong_blob_is_an_error_before_its_first_byte(workers: Workers) -> None:
    """Up to 1 MiB nothing is sent before it is verified."""
    workers.upstream.body = b"<html>"
    with pytest.raises(BadUpstream):
        await open_blob(workers.all[1])


async def test_an_answer_of_the_upstream_reaches_the_other_workers(workers: Workers) -> None:
    """404 upstream is 404 everywhere, asked once for each time."""
    workers.upstream.error = BlobUnknown("no such blob")
    with pytest.raises(BlobUnknown):
        await workers.all[2].blobs.open(TARGET, DIGEST)
    assert workers.upstream.starts == [0]


async def test_an_upstream_that_stays_away_leaves_its_bytes_for_the_next_try(workers: Workers) -> None:
    """After giving up, the next request goes on where the last one stopped."""
    workers.upstream.cuts = [1_500_000] * 6
    opened = await open_blob(workers.all[0])
    with pytest.raises(Unavailable):
        await read_all(opened.reader)
    opened.reader.close()
    await settled(workers)
    asked = len(workers.upstream.starts)
    workers.upstream.cuts = []
    assert await pull(workers.all[1]) == BODY
    assert workers.upstream.starts[asked:] == [1_500_000]


def fill_disk(monkeypatch: pytest.MonkeyPatch, full_at: int = 0) -> None:
    """No partial file can have more bytes than these."""
    write = os.pwrite

    def fail_from(fd: int, chunk: bytes, offset: int) -> int:
        if offset + len(chunk) > full_at:
            raise OSError(28, "No space left on device")
        return write(fd, chunk, offset)

    monkeypatch.setattr(partial_file_module.os, "pwrite", fail_from)


async def test_a_reader_that_comes_when_a_download_has_ended_without_readers(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The download has decided to end, and the event loop does not know yet: the reader gets another one."""
    fill_disk(monkeypatch)
    monkeypatch.setattr("dockyard.storage.memory_budget.MAX_WINDOW_BYTES", 1_000_000)
    monkeypatch.setattr("dockyard.storage.memory_budget.MIN_WINDOW_BYTES", 1_000_000)
    loop, owner, late = asyncio.get_running_loop(), workers.all[0], []
    give_up = DownloadJob._give_up

    def join_before(job: DownloadJob, exc: Exception) -> None:
        if isinstance(exc, NoReadersLeft) and not late:
            late.append(asyncio.run_coroutine_threadsafe(pull(owner), loop))
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0.1), loop).result(EVENT_TIMEOUT_S)
        give_up(job, exc)

    monkeypatch.setattr(DownloadJob, "_give_up", join_before)
    workers.upstream.hold = 100_000
    (await open_blob(owner)).reader.close()
    workers.upstream.gate.set()
    while not late:  # noqa: ASYNC110  the end of a thread
        await asyncio.sleep(0.01)
    assert await asyncio.wrap_future(late[0]) == BODY
    assert workers.upstream.starts == [0, 0]


@pytest.mark.parametrize("full_at", [0, 1_500_000])
async def test_a_full_disk_fails_nobody(workers: Workers, full_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reader gets the blob through memory; nothing is stored; each worker fetches for its own."""
    fill_disk(monkeypatch, full_at)
    workers.upstream.hold = 2_000_000  # no download ends before all readers have joined
    opened = await asyncio.gather(*(open_blob(workers.all[number % 3]) for number in range(9)))
    workers.upstream.gate.set()
    assert set(await asyncio.gather(*(read_all(each.reader) for each in opened))) == {BODY}
    for each in opened:
        each.reader.close()
    assert len(workers.upstream.starts) <= 3
    await settled(workers)
    assert workers.stored() is None
    assert workers.partial() == []


@pytest.mark.parametrize("verify", ["start", "never"])
async def test_a_download_whose_file_cannot_be_read_is_not_joined(
    workers: Workers, monkeypatch: pytest.MonkeyPatch, verify: str
) -> None:
    """It is complete, and not over yet: other files are evicted after it, which may take long."""
    owner = workers.all[0]
    monkeypatch.setattr(owner.downloads._stores.local.blobs, "_verify", verify)
    is_over = threading.Event()
    monkeypatch.setattr(SizeCap, "enforce_if_due", lambda _: is_over.wait(EVENT_TIMEOUT_S))
    try:
        assert await pull(owner) == BODY
        download = owner.downloads.find(DIGEST)
        assert download
        assert download.complete_blob
        assert owner.downloads.join(TARGET, DIGEST) == (download, True)
        workers.store.blobs.report_unreadable(download.complete_blob, OSError(errno.EIO, "Input/output error"))
        another, is_joined = owner.downloads.join(TARGET, DIGEST)
        assert (another is download, is_joined) == (False, False)
    finally:
        is_over.set()
    await settled(workers)


async def test_a_queued_download_does_not_time_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All threads for fills are taken for longer than a download may stand still: who waits is served in the end."""
    monkeypatch.setattr("dockyard.cache.threads.MAX_DOWNLOAD_THREADS", 1)
    monkeypatch.setattr("dockyard.cache.download.CHECK_INTERVAL_S", 0.05)
    monkeypatch.setattr("dockyard.cache.download.NO_PROGRESS_TIMEOUT_S", 3.0)
    monkeypatch.setattr("dockyard.cache.following.NO_PROGRESS_TIMEOUT_S", 3.0)
    workers = Workers(tmp_path)
    await workers.start(2)
    is_free = threading.Event()
    try:
        other = asyncio.create_task(workers.all[0].threads.download(TARGET, is_free.wait, EVENT_TIMEOUT_S))
        pulls = [asyncio.create_task(pull(worker)) for worker in workers.all]
        await asyncio.wait(pulls, timeout=4.0)
        assert not any(each.done() for each in pulls)
        is_free.set()
        assert await asyncio.gather(*pulls) == [BODY, BODY]
        assert await other
    finally:
        is_free.set()
        workers.close()
    assert workers.upstream.starts == [0]


# Bodies that do not tell their size


async def test_a_size_from_head_lets_readers_begin(workers: Workers) -> None:
    """On every worker, before the last byte is there; HEAD is sent once."""
    workers.upstream.tells_size = False
    workers.upstream.hold = 2_000_000
    for worker in workers.all:
        opened = await open_blob(worker)
        assert opened.reader.size == len(BODY)
        assert await read_all(opened.reader, 0, 1_500_000) == BODY[:1_500_000]
        opened.reader.close()
    workers.upstream.gate.set()
    await settled(workers)
    assert workers.stored() == BODY
    assert (workers.upstream.starts, workers.upstream.heads) == ([0], 1)


async def test_a_size_from_a_manifest_needs_no_head(workers: Workers) -> None:
    """Of any manifest of the repository that is stored; a damaged one is skipped."""
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": str(DIGEST), "size": len(BODY)}
    for body in (b"{" + DIGEST.encoded.encode(), json.dumps({"layers": [None, layer]}).encode()):
        workers.store.write_manifest(TARGET.name, Digest.of(body), body)
    workers.upstream.tells_size = False
    workers.upstream.hold = 2_000_000
    opened = await open_blob(workers.all[1])
    assert opened.reader.size == len(BODY)
    opened.reader.close()
    assert workers.upstream.heads == 0


async def test_a_size_that_nobody_knows_is_waited_for(workers: Workers) -> None:
    """As a whole; a failing HEAD fails nothing."""
    workers.upstream.tells_size = False
    workers.upstream.head_size = Unavailable("no HEAD today")
    assert await pull(workers.all[1]) == BODY
    assert workers.upstream.heads == 1


async def test_the_size_of_a_small_blob_is_not_looked_up(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is verified as a whole before its first byte is sent."""
    monkeypatch.setattr("dockyard.cache.download_job.MAX_SMALL_BYTES", len(BODY))
    workers.upstream.tells_size = False
    assert await pull(workers.all[1]) == BODY
    assert workers.upstream.heads == 0


@pytest.mark.parametrize("wrong_by", [-5, -900_000, 5, 900_000])
async def test_a_wrong_size_completes_for_nobody_and_the_digest_decides(workers: Workers, wrong_by: int) -> None:
    """Readers with a wrong size get no complete response. The blob is right, so it is kept for the next reader."""
    workers.upstream.tells_size = False
    workers.upstream.head_size = len(BODY) + wrong_by
    for worker in workers.all[:1]:
        opened = await open_blob(worker)
        assert opened.reader.size == len(BODY) + wrong_by
        with pytest.raises(BadUpstream):
            await read_all(opened.reader)
        opened.reader.close()
    await settled(workers)
    assert workers.stored() == BODY
    assert await pull(workers.all[1]) == BODY
    assert workers.upstream.starts == [0]


async def test_a_body_without_a_size_that_breaks_off_unnoticed_is_resumed(workers: Workers) -> None:
    """It is shorter than the size from HEAD: the rest is requested."""
    workers.upstream.tells_size = False
    workers.upstream.body = BODY[:2_000_000]
    opened = await open_blob(workers.all[0])
    assert await read_all(opened.reader, 0, 1_500_000) == BODY[:1_500_000]
    workers.upstream.body = BODY
    assert await read_all(opened.reader, 1_500_000) == BODY[1_500_000:]
    opened.reader.close()
    assert workers.upstream.starts[0] == 0
    assert set(workers.upstream.starts[1:]) == {2_000_000}


async def test_wrong_bytes_without_a_size_are_not_kept(workers: Workers) -> None:
    """With the expected size, and another digest."""
    workers.upstream.tells_size = False
    workers.upstream.body = BODY[:-1] + bytes([BODY[-1] ^ 1])
    opened = await open_blob(workers.all[0])
    with pytest.raises(BadUpstream):
        await read_all(opened.reader)
    opened.reader.close()
    await settled(workers)
    assert workers.stored() is None


# Sizes without a download


async def test_many_heads_on_all_workers_cost_one_request(workers: Workers) -> None:
    """The owner of the digest asks, and remembers the size for a moment."""
    found = await asyncio.gather(*(workers.all[number % 3].blobs.find_size(TARGET, DIGEST) for number in range(60)))
    assert {(size.size, size.how) for size in found} == {(len(BODY), "asked")}
    assert (await workers.all[2].blobs.find_size(TARGET, DIGEST)).size == len(BODY)
    assert (workers.upstream.heads, workers.upstream.starts) == (1, [])


async def test_a_size_is_of_one_repository(workers: Workers) -> None:
    """Another repository of the upstream may not have the blob."""
    await workers.all[1].blobs.find_size(TARGET, DIGEST)
    other = Target(UPSTREAM, "other", Name.parse("up.test/other"))
    workers.upstream.head_size = BlobUnknown("no such blob")
    with pytest.raises(BlobUnknown):
        await workers.all[1].blobs.find_size(other, DIGEST)


async def test_a_size_that_is_not_found_is_not_remembered(workers: Workers) -> None:
    """The error reaches every worker, and the next request asks again."""
    workers.upstream.head_size = BlobUnknown("no such blob")
    for worker in workers.all:
        with pytest.raises(BlobUnknown):
            await worker.blobs.find_size(TARGET, DIGEST)
    workers.upstream.head_size = 7
    assert (await workers.all[1].blobs.find_size(TARGET, DIGEST)).size == 7


async def test_a_size_can_be_found_without_the_owner(workers: Workers) -> None:
    """The next owner asks."""
    workers.all[0].die()
    assert (await workers.all[2].blobs.find_size(TARGET, DIGEST)).size == len(BODY)
    assert workers.upstream.heads == 1


async def test_a_frozen_owner_is_done_without(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner that holds its socket and answers nothing delays a pull by its time limit only."""
    monkeypatch.setattr("dockyard.workers.peers.ACKNOWLEDGE_TIMEOUT_S", 0.05)
    owner = workers.all[0].peers.shard
    workers.all[0].peers.close()
    assert owner is not None

    address = workers.directory / "run" / f"shard-{owner}.sock"
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(str(address))
        frozen.listen()
        assert await pull(workers.all[2]) == BODY
    assert workers.upstream.starts == [0]


# Logins of clients, where the upstream decides about access

ANN, BOB = Login("ann", "canary-of-ann"), Login("bob", "canary-of-bob")


class DecidingUpstream(FakeUpstream):
    """An upstream that refuses some logins."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: set[Login | None] = set()
        self.on_refusal: Callable[[], object] = lambda: None

    def with_login(self, login: Login | None) -> "LoginOpener":
        return LoginOpener(self, login)


@attrs.frozen
class LoginOpener:
    """The upstream, used with one login."""

    upstream: DecidingUpstream
    login: Login | None

    def open_blob(self, repository: str, digest: Digest, start: int = 0, *_: object) -> FakeBody:
        if self.login in self.upstream.refused:
            self.upstream.on_refusal()
            raise AccessDenied("not for this login")
        return self.upstream.open_blob(repository, digest, start)

    def head_blob(self, repository: str, digest: Digest) -> int:
        return self.upstream.head_blob(repository, digest)


def target_of(login: Login) -> Target:
    """The target of a client with this login."""
    return attrs.evolve(TARGET, upstream=attrs.evolve(UPSTREAM, access="upstream"), login=login)


async def open_as(worker: Worker, login: Login) -> OpenedBlob:
    """Open the blob as a client with this login."""
    opened = await worker.blobs.open(target_of(login), DIGEST)
    assert isinstance(opened, OpenedBlob)
    return opened


@pytest.fixture
async def deciding(tmp_path: Path) -> AsyncIterator[Workers]:
    """Three workers whose upstream decides about access."""
    workers = Workers(tmp_path)
    workers.upstream = DecidingUpstream()
    await workers.start(3)
    yield workers
    workers.close()


async def test_a_login_that_joins_while_another_is_refused_is_used(deciding: Workers) -> None:
    """Also when the refusal is on its way from the thread of the download to its readers."""
    upstream = deciding.upstream
    assert isinstance(upstream, DecidingUpstream)
    loop, worker = asyncio.get_running_loop(), deciding.all[0]
    joined: list[asyncio.Task[OpenedBlob]] = []

    async def join() -> None:
        joined.append(asyncio.create_task(open_as(worker, BOB)))
        await asyncio.sleep(0)

    give_up = DownloadJob._give_up

    def join_after_refusal(job: DownloadJob, exc: Exception) -> None:
        if not joined:
            asyncio.run_coroutine_threadsafe(join(), loop).result(EVENT_TIMEOUT_S)
        give_up(job, exc)

    upstream.refused = {ANN}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DownloadJob, "_give_up", join_after_refusal)
        with contextlib.suppress(AccessDenied):
            await open_as(worker, ANN)
        opened = await joined[0]
    assert await read_all(opened.reader) == BODY
    opened.reader.close()


async def test_the_worker_that_downloads_uses_the_logins_of_those_that_follow_it(deciding: Workers) -> None:
    """Also of the owner of the blob, which was started again after the download had begun."""
    upstream = deciding.upstream
    assert isinstance(upstream, DecidingUpstream)
    upstream.hold, upstream.cuts = 1_500_000, [2_000_000]
    owner, other = deciding.all[:2]
    owner.peers.stop_listening()
    first = await open_as(other, ANN)
    assert await read_all(first.reader, 0, 1_000_000) == BODY[:1_000_000]
    await owner.peers.listen(deciding.shards[0], handler(owner.downloads, owner.blobs))
    second = await open_as(owner, BOB)
    assert await read_all(second.reader, 0, 1_000_000) == BODY[:1_000_000]
    upstream.refused = {ANN}
    upstream.gate.set()
    assert await read_all(second.reader) == BODY
    for opened in (first, second):
        opened.reader.close()
