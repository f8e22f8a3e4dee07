"""A download wakes its readers: at once for the first and the last bytes, now and then for the few between."""

import asyncio

import attrs
import pytest

from dockyard.cache import download as download_module
from dockyard.cache.download import FEW_BYTES, Download
from dockyard.errors import UpstreamTimeout
from dockyard.oci.reference import Digest

SIZE = 100 * FEW_BYTES
STEP = 1024
STEPS = 50


@attrs.define(eq=False)
class Place:
    """A reader's place."""

    position: int = 0


def download_with(readers: int) -> Download:
    """A download that so many read."""
    download = Download(Digest.of(b"download"))
    for _ in range(readers):
        download.attach(Place())
    return download


async def read_on(download: Download, until: int) -> int:
    """Follow the download up to a byte; how often there was news."""
    position = wakes = 0
    while position < until:
        position += (await download.wait_for(position))[1]
        wakes += 1
    return wakes


async def drip(download: Download, start: int = 0) -> None:
    """Release some bytes after the other, and let the readers run after each."""
    for step in range(1, STEPS + 1):
        download.follow(SIZE, start + step * STEP)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_with_few_readers_each_byte_is_announced_at_once() -> None:
    """With hardly anybody to wake there is nothing to save."""
    download = download_with(0)
    reader = asyncio.create_task(read_on(download, STEPS * STEP))
    await asyncio.sleep(0)
    await drip(download)
    assert reader.done()
    assert reader.result() == STEPS


async def test_many_readers_are_not_woken_for_every_few_bytes() -> None:
    """The first bytes come at once, the others together and soon."""
    download = download_with(100)
    first = asyncio.create_task(download.wait_for(0))
    reader = asyncio.create_task(read_on(download, STEPS * STEP))
    await asyncio.sleep(0)
    download.follow(SIZE, STEP)
    await asyncio.sleep(0)
    assert first.done()
    await drip(download)
    assert not reader.done()
    assert await asyncio.wait_for(reader, 5.0) < STEPS / 5


async def test_what_changes_before_one_waits_is_not_missed() -> None:
    """Whoever looked, and was busy when it changed, does not wait for the next change."""
    download = download_with(0)
    seen = download.changes
    download.complete(SIZE)
    await asyncio.wait_for(download.news(seen), 1.0)
    waits = asyncio.create_task(download.news(download.changes))
    await asyncio.sleep(0)
    assert not waits.done()
    download.follow(SIZE, SIZE)
    await asyncio.wait_for(waits, 1.0)


async def test_a_download_that_stands_still_ends_for_those_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a long time without any change; not while its fill waits for its turn."""
    monkeypatch.setattr(download_module, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(download_module, "NO_PROGRESS_TIMEOUT_S", 0.1)
    download = download_with(0)
    download.is_queued = True
    waits = asyncio.create_task(download.wait_for(0))
    await asyncio.sleep(0.3)
    assert not waits.done()
    download.is_queued = False
    with pytest.raises(UpstreamTimeout):
        await asyncio.wait_for(waits, 5.0)


async def test_many_bytes_and_the_end_are_announced_at_once() -> None:
    """What is worth a wake-up waits for nothing; nor does the end, or an error."""
    download = download_with(100)
    download.follow(SIZE, STEP)
    for position, release in (
        (STEP, lambda: download.follow(SIZE, STEP + FEW_BYTES)),
        (STEP + FEW_BYTES, lambda: download.complete(SIZE)),
    ):
        waits = asyncio.create_task(download.wait_for(position))
        await asyncio.sleep(0)
        release()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert waits.done()
