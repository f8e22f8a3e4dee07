"""Blobs that are kept open: how many, and that they are closed again."""

import asyncio
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dockyard.cache import open_blobs as open_blobs_module
from dockyard.cache.open_blobs import DESCRIPTORS_PER_OPEN_BLOB, MIN_OPEN_BLOBS, OpenBlobs
from dockyard.cache.threads import Threads
from dockyard.oci.reference import Digest
from dockyard.storage.local import LocalStore
from tests.support.busy_machine import EVENT_TIMEOUT_S


class CountedThreads(Threads):
    """Threads that count the calls for the disk."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    async def disk(self, call: Callable[..., Any], *args: object) -> Any:
        self.calls += 1
        return await super().disk(call, *args)


@pytest.mark.parametrize(
    ("descriptors", "kept"), [(1024, MIN_OPEN_BLOBS), (100 * DESCRIPTORS_PER_OPEN_BLOB, 100)], ids=["few", "many"]
)
async def test_how_many_blobs_are_kept_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, descriptors: int, kept: int
) -> None:
    """More where the limit of open files is large; each of them needs no thread. All are closed after a while."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (descriptors, descriptors))
    monkeypatch.setattr(open_blobs_module, "KEPT_OPEN_S", 3600.0)
    store = LocalStore(tmp_path, "cache/", 0)
    store.create_directories()
    digests = []
    for number in range(120):
        body = b"%d" % number
        digests.append(digest := Digest.of(body))
        path = tmp_path / "cache/blobs/sha256" / digest.encoded[:2] / digest.encoded
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    threads = CountedThreads()
    open_blobs = OpenBlobs(store.blobs, threads)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for digest in digests:
            blob = await open_blobs.open(digest)
            assert blob is not None
            os.close(blob.fd)
    assert len(os.listdir("/proc/self/fd")) == before + kept
    assert threads.calls == 2 * len(digests) - kept
    open_blobs.close()
    assert len(os.listdir("/proc/self/fd")) == before
    threads.close()


async def test_a_blob_is_closed_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that its disk space is soon free when it was deleted."""
    monkeypatch.setattr(open_blobs_module, "KEPT_OPEN_S", 0.01)
    store = LocalStore(tmp_path, "cache/", 0)
    store.create_directories()
    digest = Digest.of(b"x")
    path = tmp_path / "cache/blobs/sha256" / digest.encoded[:2] / digest.encoded
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    threads = Threads()
    blob = await OpenBlobs(store.blobs, threads).open(digest)
    assert blob is not None
    os.close(blob.fd)

    def is_open() -> bool:
        links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
        return str(path) in [os.readlink(link) for link in links if os.path.lexists(link)]

    async with asyncio.timeout(EVENT_TIMEOUT_S):
        while is_open():  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(0.01)
    threads.close()
