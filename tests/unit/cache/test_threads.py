"""The threads of a worker: nothing that one upstream or one repository does holds up another for long."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from dockyard.cache.threads import (
    MAX_DOWNLOAD_THREADS,
    MAX_LIST_THREADS,
    MAX_TOKEN_THREADS,
    MAX_UPSTREAM_THREADS,
    PASSWORD_NICE,
    Threads,
)
from dockyard.config.settings import Auth, Upstream
from dockyard.errors import UpstreamTimeout
from dockyard.oci.reference import Name
from dockyard.routing import Target
from tests.support.busy_machine import EVENT_TIMEOUT_S, is_within

Run = Callable[..., Awaitable[object]]

KINDS = {"upstream": MAX_UPSTREAM_THREADS, "list": MAX_LIST_THREADS, "download": MAX_DOWNLOAD_THREADS}


def target(prefix: str = "slow.test", repository: str = "app") -> Target:
    """A repository of an upstream."""
    return Target(Upstream(prefix, f"https://{prefix}", Auth("anonymous")), repository, Name(f"{prefix}/{repository}"))


class Gate:
    """What hangs until it is opened. `running`: how many calls hang now, and how many did at most."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.running = 0
        self.started: list[str] = []
        self._lock = threading.Lock()

    def hang(self, name: str = "") -> str:
        with self._lock:
            self.running += 1
            self.started.append(name)
        assert self.is_open.wait(EVENT_TIMEOUT_S)
        with self._lock:
            self.running -= 1
        return name


@pytest.fixture
async def threads() -> AsyncIterator[Threads]:
    """Threads that are closed at the end."""
    threads = Threads()
    yield threads
    threads.close()


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    """A gate that is opened at the end."""
    gate = Gate()
    yield gate
    gate.is_open.set()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what threads do."""
    async with asyncio.timeout(EVENT_TIMEOUT_S):
        while not condition():  # noqa: ASYNC110  threads send no event
            await asyncio.sleep(0.002)


def hang_all(threads: Threads, kind: str, gate: Gate, count: int, *repositories: str) -> list[asyncio.Task[object]]:
    """Start calls that hang, alternately for these repositories."""
    run: Run = getattr(threads, kind)
    names = repositories or ("one", "two")
    return [
        asyncio.ensure_future(run(target(repository=names[number % len(names)]), gate.hang, names[number % len(names)]))
        for number in range(count)
    ]


@pytest.mark.parametrize("kind", KINDS)
async def test_an_upstream_that_hangs_does_not_hold_up_another(threads: Threads, gate: Gate, kind: str) -> None:
    """All its threads are in use and more calls wait: calls of another upstream of every kind run at once."""
    tasks = hang_all(threads, kind, gate, 2 * KINDS[kind])
    await until(lambda: gate.running == KINDS[kind])
    for other in KINDS:
        run: Run = getattr(threads, other)
        async with asyncio.timeout(EVENT_TIMEOUT_S):
            assert await run(target("other.test"), lambda: "done") == "done"
    assert await threads.disk(lambda: "done") == "done"
    assert await threads.bucket(lambda: "done") == "done"
    gate.is_open.set()
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("kind", [*KINDS, "disk", "verify", "links", "bucket", "token", "password"])
async def test_what_a_call_has_the_loop_do_is_done_before_it_returns(
    threads: Threads, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Also if it has ended before anybody waits for it, and its result is there at once, as with Python 3.14."""
    loop, submit = asyncio.get_running_loop(), ThreadPoolExecutor.submit
    done: list[str] = []

    def submit_and_wait(executor: ThreadPoolExecutor, call: Callable[..., str], *args: str) -> Future[str]:
        future = submit(executor, call, *args)
        future.result(EVENT_TIMEOUT_S)
        return future

    def wrap_at_once(future: Future[str]) -> asyncio.Future[str]:
        wrapped: asyncio.Future[str] = loop.create_future()
        wrapped.set_result(future.result())
        return wrapped

    def call() -> str:
        loop.call_soon_threadsafe(done.append, "by the loop")
        return "result"

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit_and_wait)
    monkeypatch.setattr(asyncio, "wrap_future", wrap_at_once)
    run: Run = getattr(threads, kind)
    args = (target(),) if kind in KINDS else ()
    keywords = {"was_right": True} if kind == "password" else {}
    assert await run(*args, call, **keywords) == "result"
    assert done == ["by the loop"]


@pytest.mark.parametrize("kind", KINDS)
async def test_threads_are_limited_and_reused(threads: Threads, gate: Gate, kind: str) -> None:
    """Never more than the limit, and all calls run in the end."""
    tasks = hang_all(threads, kind, gate, 3 * KINDS[kind])
    await until(lambda: gate.running == KINDS[kind])
    await asyncio.sleep(0.02)
    assert gate.running == KINDS[kind]
    gate.is_open.set()
    assert sorted(map(str, await asyncio.gather(*tasks))) == sorted(["one", "two"] * (3 * KINDS[kind] // 2))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_repository_that_hangs_leaves_threads_to_the_others(threads: Threads, gate: Gate, kind: str) -> None:
    """It gets three quarters of the threads of its upstream."""
    tasks = hang_all(threads, kind, gate, 2 * KINDS[kind], "slow")
    await until(lambda: gate.running == KINDS[kind] * 3 // 4)
    run: Run = getattr(threads, kind)
    async with asyncio.timeout(EVENT_TIMEOUT_S):
        assert await run(target(repository="fast"), lambda: "done") == "done"
    gate.is_open.set()
    await asyncio.gather(*tasks)


async def test_repositories_take_turns(threads: Threads, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository with one call does not wait for the hundred that another one has in the queue."""
    monkeypatch.setattr("dockyard.cache.threads.MAX_LIST_THREADS", 1)  # so that calls run in the order of their turns
    busy = hang_all(threads, "list", gate, 1)
    await until(lambda: gate.running == 1)
    order: list[str] = []
    waiting = [
        asyncio.ensure_future(threads.list(target(repository=name), order.append, name))
        for name in ["many"] * 20 + ["few"]
    ]
    await asyncio.sleep(0)
    gate.is_open.set()
    await asyncio.gather(*busy, *waiting)
    assert order.index("few") <= 2


async def test_waiting_for_a_thread_has_a_limit(threads: Threads, gate: Gate) -> None:
    """At the deadline the call fails without having started, and the queue forgets it."""
    tasks = hang_all(threads, "upstream", gate, MAX_UPSTREAM_THREADS)
    await until(lambda: gate.running == MAX_UPSTREAM_THREADS)
    begun, late = time.monotonic(), []
    with pytest.raises(UpstreamTimeout, match="waiting"):
        await threads.upstream(target(), late.append, "late", deadline=begun + 0.1)
    assert is_within(time.monotonic() - begun, 4)
    gate.is_open.set()
    await asyncio.gather(*tasks)
    assert await threads.upstream(target(), lambda: "done", deadline=time.monotonic() + 5) == "done"
    assert late == []


async def test_lists_and_checks_without_a_deadline_wait_for_a_while(
    threads: Threads, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download has no limit; everything else has."""
    monkeypatch.setattr("dockyard.cache.threads.MAX_QUEUED_S", 0.05)
    for kind in ("upstream", "list"):
        hang_all(threads, kind, gate, KINDS[kind])
        await asyncio.sleep(0)
        run: Run = getattr(threads, kind)
        with pytest.raises(UpstreamTimeout):
            await run(target(repository="late"), lambda: "done")


async def test_a_caller_that_leaves_gives_back_its_thread_when_the_call_has_ended(threads: Threads, gate: Gate) -> None:
    """Cancelled callers, running and waiting ones: no thread is counted twice, and none is lost."""
    tasks = hang_all(threads, "list", gate, 3 * MAX_LIST_THREADS)
    await until(lambda: gate.running == MAX_LIST_THREADS)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    late = asyncio.ensure_future(threads.list(target(), gate.hang, "late"))
    await asyncio.sleep(0.02)
    assert gate.running == MAX_LIST_THREADS
    gate.is_open.set()
    assert await late == "late"
    assert gate.started.count("late") == 1
    assert len(gate.started) == MAX_LIST_THREADS + 1
    again = Gate()
    more = hang_all(threads, "list", again, MAX_LIST_THREADS)
    await until(lambda: again.running == MAX_LIST_THREADS)
    again.is_open.set()
    await asyncio.gather(*more)


async def test_an_error_of_a_call_reaches_its_caller(threads: Threads) -> None:
    """And its thread is free again."""

    def fail() -> None:
        raise UpstreamTimeout("slow")

    for _ in range(2 * MAX_LIST_THREADS):
        with pytest.raises(UpstreamTimeout, match="slow"):
            await threads.list(target(), fail)


async def test_threads_are_started_on_demand(threads: Threads) -> None:
    """Twenty upstreams that are asked in turn cost one thread each: it is idle long before its next call."""
    before = threading.active_count()
    for _ in range(5):
        for number in range(20):
            await threads.upstream(target(f"up{number}.test"), lambda: None)
    assert threading.active_count() - before <= 20 + 8


async def test_passwords_are_verified_at_a_lower_priority(threads: Threads) -> None:
    """One at a time, so that the other threads of the machine get their CPU time first; tokens need little."""
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def get_priority() -> tuple[int, int]:
        return threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    found = [await threads.password(get_priority, was_right=False) for _ in range(3)]
    assert len({thread for thread, _ in found}) == 1
    assert {priority for _, priority in found} == {min(own + PASSWORD_NICE, 19)}
    assert (await threads.token(get_priority))[1] == own
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own


async def test_downloads_of_keys_do_not_hold_up_passwords(threads: Threads, gate: Gate) -> None:
    """A URL with keys that hangs keeps threads of tokens busy, and no others."""
    calls = [asyncio.create_task(threads.token(gate.hang)) for _ in range(MAX_TOKEN_THREADS)]
    assert await threads.password(lambda: "verified", was_right=False) == "verified"
    gate.is_open.set()
    await asyncio.gather(*calls)


async def test_guesses_do_not_hold_up_passwords_that_were_right(threads: Threads, gate: Gate) -> None:
    """However many wait."""
    calls = [asyncio.create_task(threads.password(gate.hang, was_right=False)) for _ in range(5)]
    assert await threads.password(lambda: "verified", was_right=True) == "verified"
    gate.is_open.set()
    await asyncio.gather(*calls)
