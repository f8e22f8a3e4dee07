"""Blobs of the local store over several workers: one verification, right bytes, and what happens to damaged ones."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dockyard.cache import downloads as downloads_module
from dockyard.cache.blobs import OpenedBlob
from dockyard.cache.readers import MAX_SMALL_BYTES
from dockyard.errors import Unavailable
from dockyard.oci.reference import Digest
from dockyard.storage import blob_files
from dockyard.storage.partial_file import PartialFile
from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.unit.cache.test_downloads import BODY, DIGEST, TARGET, Worker, Workers, pull, read_all, settled

pytestmark = pytest.mark.usefixtures("slow_machine")

READ_IN_CHUNKS = blob_files.read_in_chunks


class Gate:
    """Stops every verification after some bytes, until it is opened. `hashed_bytes` were let through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int = 0) -> None:
        self.is_open = threading.Event()
        self.is_reached = threading.Event()
        self.verifications = 0
        self._after = after
        monkeypatch.setattr(downloads_module, "read_in_chunks", self._read)

    def _read(self, fd: int) -> Iterator[memoryview]:
        self.verifications += 1
        passed = 0
        for chunk in READ_IN_CHUNKS(fd):
            if passed >= self._after:
                self.is_reached.set()
                assert self.is_open.wait(EVENT_TIMEOUT_S)
            yield chunk
            passed += len(chunk)

    async def reached(self) -> None:
        """Wait until a verification is stopped here."""
        assert await asyncio.to_thread(self.is_reached.wait, 20)


@pytest.fixture
async def workers(tmp_path: Path) -> AsyncIterator[Workers]:
    """Three workers of a server that was started with BODY in its store; the first of `workers` owns it."""
    workers = Workers(tmp_path)
    path = stored_file(workers)
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    await asyncio.sleep(0.03)  # so old that each change of the file is seen
    await workers.start(3)
    yield workers
    workers.close()


def stored_file(workers: Workers, digest: Digest = DIGEST) -> Path:
    """The file of a blob."""
    return workers.directory / "cache/blobs/sha256" / digest.encoded[:2] / digest.encoded


def damage(workers: Workers) -> None:
    """Flip a bit in the stored file."""
    content = bytearray(stored_file(workers).read_bytes())
    content[1000] ^= 1
    stored_file(workers).write_bytes(content)


async def open_range(worker: Worker) -> OpenedBlob:
    """Open the blob for a range of it."""
    opened = await worker.blobs.open(TARGET, DIGEST, is_range=True)
    assert isinstance(opened, OpenedBlob)
    return opened


async def pull_range(worker: Worker) -> bytes:
    """100 bytes from the middle."""
    opened = await open_range(worker)
    try:
        assert opened.how == "hit"
        return await read_all(opened.reader, 2_000_000, 2_000_100)
    finally:
        opened.reader.close()


async def test_a_blob_is_verified_once_for_all_clients_of_all_workers(
    workers: Workers, hashed_bytes: Callable[[], float]
) -> None:
    """Whole blobs and ranges, at once and afterwards: the file is hashed once and the upstream is not asked."""
    calls = [each for number in range(15) for each in (pull(workers.all[number % 3]), pull_range(workers.all[-1]))]
    assert set(await asyncio.gather(*calls)) == {BODY, BODY[2_000_000:2_000_100]}
    assert await pull(workers.all[1]) == BODY
    assert hashed_bytes() == len(BODY)
    assert workers.upstream.starts == []
    await settled(workers)
    assert workers.partial() == []


async def test_the_event_loop_deletes_no_partial_file(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was claimed to verify a blob is not needed: a thread deletes it."""
    threads: list[threading.Thread] = []
    discard = PartialFile.discard

    def record(partial_file: PartialFile) -> None:
        threads.append(threading.current_thread())
        discard(partial_file)

    monkeypatch.setattr(PartialFile, "discard", record)
    assert await pull(workers.all[1]) == BODY
    await settled(workers)
    assert len(threads) == 1
    assert threading.current_thread() not in threads
    assert workers.partial() == []


async def test_a_blob_that_is_being_verified_is_a_hit(workers: Workers) -> None:
    """However the request is answered: no byte comes from the upstream."""
    for worker in workers.all:
        opened = await worker.blobs.open(TARGET, DIGEST)
        assert isinstance(opened, OpenedBlob)
        assert opened.how == "hit"
        opened.reader.close()


@pytest.mark.parametrize("number", [0, 1], ids=["owner", "another worker"])
async def test_other_blobs_do_not_wait_for_a_verification(
    workers: Workers, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Many clients wait for a large blob; a small one, and one that is verified, are answered meanwhile."""
    worker = workers.all[number]
    digests = []
    for body in (b"small", os.urandom(2_000_000)):
        digests.append(Digest.of(body))
        path = stored_file(workers, digests[-1])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    await asyncio.sleep(0.03)  # as above
    opened = await worker.blobs.open(TARGET, digests[1])
    assert isinstance(opened, OpenedBlob)
    opened.reader.close()
    gate = Gate(monkeypatch)
    waiting = [asyncio.create_task(pull_range(worker)) for _ in range(24)]
    await gate.reached()
    for digest in digests:
        opened = await asyncio.wait_for(worker.blobs.open(TARGET, digest), EVENT_TIMEOUT_S)
        assert isinstance(opened, OpenedBlob)
        opened.reader.close()
    assert not any(each.done() for each in waiting)
    gate.is_open.set()
    assert set(await asyncio.gather(*waiting)) == {BODY[2_000_000:2_000_100]}
    assert gate.verifications == 1


async def test_a_damaged_blob_is_fetched_for_all_who_wait(workers: Workers, hashed_bytes: Callable[[], float]) -> None:
    """Clients of all workers get the right bytes, the upstream is asked once, and the blob is stored again."""
    damage(workers)
    bodies = await asyncio.gather(*(pull(workers.all[number % 3]) for number in range(12)))
    assert set(bodies) == {BODY}
    assert workers.upstream.starts == [0]
    await settled(workers)
    assert workers.stored() == BODY
    assert hashed_bytes() == len(BODY)


async def test_a_damaged_blob_is_an_error_while_the_upstream_is_away(workers: Workers) -> None:
    """There are no right bytes: no client gets others."""
    damage(workers)
    workers.upstream.error = Unavailable("down")
    for worker in workers.all:
        with pytest.raises(Unavailable):
            await pull(worker)
        await settled(workers)
    assert workers.stored() is None


@pytest.mark.parametrize("number", [0, 2], ids=["owner", "another worker"])
async def test_a_long_verification_is_followed_by_readers_but_for_the_last_bytes(
    workers: Workers, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The first bytes are there while the file is hashed. A range waits for the digest, wherever it is."""
    monkeypatch.setattr("dockyard.cache.download.MAX_VERIFY_WAIT_S", 0.0)
    gate = Gate(monkeypatch, after=2 * blob_files.CHUNK_BYTES)
    opened = await workers.all[number].blobs.open(TARGET, DIGEST)
    assert isinstance(opened, OpenedBlob)
    assert await read_all(opened.reader, 0, blob_files.CHUNK_BYTES) == BODY[: blob_files.CHUNK_BYTES]
    waiting = asyncio.create_task(open_range(workers.all[number]))
    rest = asyncio.create_task(read_all(opened.reader, blob_files.CHUNK_BYTES))
    await gate.reached()
    await asyncio.wait([waiting, rest], timeout=0.1)
    assert not waiting.done()
    assert not rest.done()
    gate.is_open.set()
    assert await rest == BODY[blob_files.CHUNK_BYTES :]
    for each in (opened, await waiting):
        each.reader.close()
    assert gate.verifications == 1


@pytest.mark.parametrize("number", [0, 1], ids=["owner", "another worker"])
async def test_a_reader_of_a_damaged_blob_fails_and_the_others_get_right_bytes(
    workers: Workers, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Who has got bytes of the damaged file cannot go on; a range that waited, and new clients, get what is fetched."""
    monkeypatch.setattr("dockyard.cache.download.MAX_VERIFY_WAIT_S", 0.0)
    damage(workers)
    worker = workers.all[number]
    gate = Gate(monkeypatch, after=2 * blob_files.CHUNK_BYTES)
    opened = await worker.blobs.open(TARGET, DIGEST)
    assert isinstance(opened, OpenedBlob)
    await read_all(opened.reader, 0, 5000)
    waiting = asyncio.create_task(open_range(worker))
    reading = asyncio.create_task(read_all(opened.reader, 5000))
    await gate.reached()
    gate.is_open.set()
    with pytest.raises(Unavailable):
        await reading
    opened.reader.close()
    part = await waiting
    assert await read_all(part.reader, 500, 1500) == BODY[500:1500]
    part.reader.close()
    assert await pull(worker) == BODY
    assert workers.upstream.starts == [0]


async def test_the_next_worker_verifies_when_the_owner_dies(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers of other workers keep their positions."""
    monkeypatch.setattr("dockyard.cache.download.MAX_VERIFY_WAIT_S", 0.0)
    gate = Gate(monkeypatch, after=2 * blob_files.CHUNK_BYTES)
    opened = await workers.all[1].blobs.open(TARGET, DIGEST)
    assert isinstance(opened, OpenedBlob)
    begin = await read_all(opened.reader, 0, blob_files.CHUNK_BYTES)
    await gate.reached()
    workers.all[0].die()
    gate.is_open.set()
    assert begin + await read_all(opened.reader, len(begin)) == BODY
    opened.reader.close()
    assert workers.upstream.starts == []


@pytest.mark.parametrize("is_restored", [False, True])
async def test_a_blob_that_changes_while_it_is_read_never_completes(workers: Workers, *, is_restored: bool) -> None:
    """The last bytes are withheld until the file was verified again; if it is right, the response completes."""
    await pull(workers.all[0])
    opened = await workers.all[0].blobs.open(TARGET, DIGEST)
    assert isinstance(opened, OpenedBlob)
    fd, available = await opened.reader.find(0)
    assert fd is not None
    assert available < len(BODY)
    damage(workers)
    if is_restored:
        stored_file(workers).write_bytes(BODY)
        assert await read_all(opened.reader) == BODY
    else:
        for position in (available, len(BODY) - 1):
            with pytest.raises(Unavailable):
                await opened.reader.find(position)
        assert workers.stored() is None
    opened.reader.close()


async def test_without_a_writable_directory_a_blob_is_verified_all_the_same(
    workers: Workers, monkeypatch: pytest.MonkeyPatch, hashed_bytes: Callable[[], float]
) -> None:
    """The disk is full, or read-only: no lock can be taken, and hits stay hits."""
    real_open = os.open

    def refuse(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(30, "Read-only file system")
        return real_open(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    for worker in workers.all * 2:
        assert await pull(worker) == BODY
    assert workers.upstream.starts == []
    assert hashed_bytes() == len(BODY)


async def test_a_blob_that_changes_right_after_its_download_is_not_read_from_the_download(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The download is complete, and is still syncing the directory: its file is visible, and is changed already."""
    stored_file(workers).unlink()
    is_synced = threading.Event()

    def sync_later(_: Path) -> None:
        assert is_synced.wait(EVENT_TIMEOUT_S)

    monkeypatch.setattr("dockyard.storage.atomic_write.sync_directory", sync_later)
    slow = await workers.all[0].blobs.open(TARGET, DIGEST)
    assert isinstance(slow, OpenedBlob)
    assert await pull(workers.all[0]) == BODY
    while workers.stored() is None:  # noqa: ASYNC110  polled from outside on purpose
        await asyncio.sleep(0.005)
    damage(workers)
    with pytest.raises(Unavailable):
        await read_all(slow.reader)
    slow.reader.close()
    pulls = [asyncio.create_task(pull(worker)) for worker in workers.all]
    await asyncio.wait(pulls, timeout=0.2)
    is_synced.set()
    assert await asyncio.gather(*pulls) == [BODY] * 3
    assert workers.upstream.starts == [0, 0]


async def test_a_complete_download_is_read_to_its_end_without_hashing(
    workers: Workers, hashed_bytes: Callable[[], float]
) -> None:
    """Keeping a blob sets its times and renames it: its readers go on."""
    stored_file(workers).unlink()
    workers.upstream.hold = 2_000_000
    opened = [await worker.blobs.open(TARGET, DIGEST) for worker in workers.all]
    workers.upstream.gate.set()
    await settled(workers)
    assert workers.stored() == BODY
    for each in opened:
        assert isinstance(each, OpenedBlob)
        assert await read_all(each.reader) == BODY
        each.reader.close()
    assert hashed_bytes() == 0


async def store_and_open(workers: Workers, body: bytes) -> tuple[OpenedBlob, Path]:
    """Write a blob to the local store, and open it; the blob and its file."""
    digest = Digest.of(body)
    path = stored_file(workers, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    await asyncio.sleep(0.03)  # as above
    opened = await workers.all[0].blobs.open(TARGET, digest)
    assert isinstance(opened, OpenedBlob)
    return opened, path


@pytest.mark.parametrize("size", [0, 1, MAX_SMALL_BYTES, MAX_SMALL_BYTES + 1])
async def test_a_small_blob_is_read_at_once(workers: Workers, size: int) -> None:
    """Its bytes are the verified ones: after a change nothing is returned, as for a larger blob."""
    body = os.urandom(size)
    opened, path = await store_and_open(workers, body)
    assert opened.reader.read_small() == (body if size <= MAX_SMALL_BYTES else None)
    path.write_bytes(bytes(size))
    os.utime(path, ns=(0, 0))
    assert opened.reader.read_small() is None
    opened.reader.close()


async def test_a_small_blob_that_is_shorter_than_it_was_is_not_read_at_once(workers: Workers) -> None:
    """Its reader then says what is wrong."""
    opened, path = await store_and_open(workers, os.urandom(1000))
    os.truncate(path, 999)
    assert opened.reader.read_small() is None
    with pytest.raises(Unavailable):
        await opened.reader.find(0)
    opened.reader.close()
