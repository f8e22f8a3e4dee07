"""The states of a download, and how it wakes its readers: at once for the first and last bytes, rarely in between."""

import asyncio

import attrs
import pytest

from dockyard.cache import download as download_module
from dockyard.cache.download import TRANSITIONS, WAKE_BYTES, Download, State
from dockyard.config.settings import Upstream
from dockyard.errors import UpstreamTimeout
from dockyard.oci.reference import Digest, Name
from dockyard.routing import Target
from dockyard.storage.memory_budget import MemoryBudget
from dockyard.storage.partial_file import PartialFile
from tests.support.busy_machine import EVENT_TIMEOUT_S

TARGET = Target(Upstream("up.test", "up.test"), "img", Name.parse("up.test/img"))
SIZE = 100 * WAKE_BYTES
STEP = 1024
STEPS = 50


@attrs.define(eq=False)
class Reader:
    """A reader's position."""

    position: int = 0


def download_with(readers: int) -> Download:
    """A download with so many readers."""
    download = Download(Digest.of(b"download"), TARGET)
    for _ in range(readers):
        download.attach(Reader())
    return download


async def read_on(download: Download, until: int) -> int:
    """Read the download up to a byte; how often the reader was woken."""
    position = wakes = 0
    while position < until:
        position += (await download.wait_for_byte(position))[1]
        wakes += 1
    return wakes


async def drip(download: Download, start: int = 0) -> None:
    """Release a few bytes at a time, and let the readers run after each."""
    for step in range(1, STEPS + 1):
        download.update(SIZE, start + step * STEP)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_with_few_readers_each_byte_is_announced_at_once() -> None:
    """Waking one reader costs little."""
    download = download_with(0)
    reader = asyncio.create_task(read_on(download, STEPS * STEP))
    await asyncio.sleep(0)
    await drip(download)
    assert reader.done()
    assert reader.result() == STEPS


async def test_many_readers_are_not_woken_for_every_few_bytes() -> None:
    """The first bytes come at once, the others together and soon."""
    download = download_with(100)
    first = asyncio.create_task(download.wait_for_byte(0))
    reader = asyncio.create_task(read_on(download, STEPS * STEP))
    await asyncio.sleep(0)
    download.update(SIZE, STEP)
    await asyncio.sleep(0)
    assert first.done()
    await drip(download)
    assert not reader.done()
    assert await asyncio.wait_for(reader, EVENT_TIMEOUT_S) < STEPS / 5


async def test_what_follows_the_first_bytes_is_released_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first bytes are released at once; what comes within RELEASE_INTERVAL_S after a release, at its end."""
    monkeypatch.setattr(download_module, "RELEASE_INTERVAL_S", 3600.0)
    download = download_with(0)
    partial_file = PartialFile.in_memory(download.digest, MemoryBudget())
    download.queue(partial_file)
    partial_file.size = SIZE
    for _ in range(STEPS):
        partial_file.append(bytes(STEP))
        download.report_progress(asyncio.get_running_loop())
        assert await download.wait_for_byte(0) == (None, STEP)
    download._release_received()  # as the timer does
    assert await download.wait_for_byte(0) == (None, STEPS * STEP)
    download.stop()
    download.end()


async def test_bytes_that_come_later_are_released_without_a_further_report() -> None:
    """Also the last ones before a pause of the upstream, and the first ones after it."""
    download = download_with(0)
    partial_file = PartialFile.in_memory(download.digest, MemoryBudget())
    download.queue(partial_file)
    partial_file.size = SIZE
    for number in range(5):
        for _ in range(2):
            partial_file.append(bytes(STEP))
            download.report_progress(asyncio.get_running_loop())
        await asyncio.wait_for(download.wait_for_byte((2 * number + 2) * STEP - 1), EVENT_TIMEOUT_S)
        await asyncio.sleep(3 * download_module.RELEASE_INTERVAL_S * (number % 2))
    download.stop()
    download.end()


async def test_other_workers_are_woken_before_the_readers_of_this_one() -> None:
    """Each of them has readers of its own, which would wait for all of those here."""
    download = download_with(0)
    woken: list[str] = []

    async def wait(name: str, *, is_for_worker: bool) -> None:
        await download.wait_for_change(is_for_worker=is_for_worker)
        woken.append(name)

    names = ("reader 1", "reader 2", "worker", "reader 3")
    tasks = [asyncio.create_task(wait(name, is_for_worker=name == "worker")) for name in names]
    await asyncio.sleep(0)
    download.update(SIZE, STEP)
    await asyncio.gather(*tasks)
    assert woken == ["worker", "reader 1", "reader 2", "reader 3"]


async def test_what_changes_before_one_waits_is_not_missed() -> None:
    """A waiter that was busy when the version changed does not wait for the next change."""
    download = download_with(0)
    seen = download.version
    download.complete(SIZE)
    await asyncio.wait_for(download.wait_for_change(seen), EVENT_TIMEOUT_S)
    waits = asyncio.create_task(download.wait_for_change(download.version))
    await asyncio.sleep(0)
    assert not waits.done()
    download.update(SIZE, SIZE)
    await asyncio.wait_for(waits, EVENT_TIMEOUT_S)


async def test_a_download_without_progress_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """After NO_PROGRESS_TIMEOUT_S without a change; not while it waits for a download thread."""
    monkeypatch.setattr(download_module, "CHECK_INTERVAL_S", 0.02)
    monkeypatch.setattr(download_module, "NO_PROGRESS_TIMEOUT_S", 0.1)
    download = download_with(0)
    download.state = State.QUEUED
    waits = asyncio.create_task(download.wait_for_byte(0))
    await asyncio.sleep(0.3)
    assert not waits.done()
    download.start_fetching()
    with pytest.raises(UpstreamTimeout):
        await asyncio.wait_for(waits, EVENT_TIMEOUT_S)


async def test_many_bytes_and_the_end_are_announced_at_once() -> None:
    """WAKE_BYTES more wake the readers without a delay, and so does the end."""
    download = download_with(100)
    download.update(SIZE, STEP)
    for position, release in (
        (STEP, lambda: download.update(SIZE, STEP + WAKE_BYTES)),
        (STEP + WAKE_BYTES, lambda: download.complete(SIZE)),
    ):
        waits = asyncio.create_task(download.wait_for_byte(position))
        await asyncio.sleep(0)
        release()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert waits.done()


def test_a_final_state_does_not_change() -> None:
    """Complete, failed and stopped are the only final states."""
    assert {state for state in State if not TRANSITIONS[state]} == {State.COMPLETE, State.FAILED, State.STOPPED}
    assert set(TRANSITIONS) == set(State)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("to", State)
async def test_only_the_transitions_of_the_table_are_possible(state: State, to: State) -> None:
    """Any other one is an error that shows the download."""
    download = download_with(0)
    download.state = state
    change = {
        State.VERIFYING: lambda: download.start_verifying(SIZE),
        State.FETCHING: lambda: download._enter(State.FETCHING),
        State.FOLLOWING: lambda: download.follow(-1),
        State.COMPLETE: lambda: download.complete(SIZE),
        State.FAILED: lambda: download.fail(UpstreamTimeout("late")),
        State.STOPPED: download.stop,
        State.QUEUED: lambda: download.queue(PartialFile.in_memory(download.digest, MemoryBudget())),
        State.STARTING: lambda: download._enter(State.STARTING),
    }[to]
    if to in TRANSITIONS[state]:
        change()
        assert download.state is to
    else:
        with pytest.raises(RuntimeError, match=str(download.digest)):
            change()
        assert download.state is state


def test_a_download_describes_itself() -> None:
    """For logs and for failing tests."""
    download = download_with(2)
    assert repr(download) == f"<Download {download.digest} starting 0/? bytes, 2 readers>"
