"""The threads of a worker: the one crossing between the event loop and code that blocks.

One bounded pool for each kind of work: short operations on the local store, verifying large blobs in it, reading the
manifests of a repository for their links, reads from the bucket, verifying tokens, and verifying passwords. For
upstreams there is a pool for each upstream and kind of work, so that an upstream that hangs cannot use up the threads
of another. Within such a pool the repositories take turns, and one repository gets at most three quarters of the
threads: a repository that hangs delays the others of its upstream only a little.

Threads start when they are first needed, so an upstream without requests has none. A worker has at most
MAX_DISK_THREADS + MAX_VERIFY_THREADS + MAX_LINK_THREADS + MAX_BUCKET_THREADS + MAX_TOKEN_THREADS +
2 MAX_PASSWORD_THREADS, and for each upstream MAX_UPSTREAM_THREADS + MAX_LIST_THREADS + MAX_DOWNLOAD_THREADS.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from dockyard.errors import UpstreamTimeout
from dockyard.routing import Target

MAX_DISK_THREADS = 8
MAX_VERIFY_THREADS = 8
MAX_LINK_THREADS = 4
MAX_BUCKET_THREADS = 16
MAX_TOKEN_THREADS = 8
MAX_PASSWORD_THREADS = 1
# For each upstream:
MAX_UPSTREAM_THREADS = 32
MAX_LIST_THREADS = 8
MAX_DOWNLOAD_THREADS = 64

PASSWORD_NICE = 10

MAX_QUEUED_S = 10.0
RETRY_AFTER_S = 3

T = TypeVar("T")


class Threads:
    """The pools of one worker."""

    def __init__(self) -> None:
        self._disk = ThreadPoolExecutor(MAX_DISK_THREADS, "disk")
        self._verify = ThreadPoolExecutor(MAX_VERIFY_THREADS, "verify")
        self._links = ThreadPoolExecutor(MAX_LINK_THREADS, "link")
        self._bucket = ThreadPoolExecutor(MAX_BUCKET_THREADS, "bucket")
        self._tokens = ThreadPoolExecutor(MAX_TOKEN_THREADS, "token")
        self._passwords = ThreadPoolExecutor(MAX_PASSWORD_THREADS, "password", _lower_priority)
        self._known_passwords = ThreadPoolExecutor(MAX_PASSWORD_THREADS, "password", _lower_priority)
        self._pools: dict[tuple[str, str], _FairPool] = {}

    async def disk(self, call: Callable[..., T], *args: object) -> T:
        """Run a short call that uses the local store."""
        return await _result_of(self._disk.submit(call, *args))

    async def verify(self, call: Callable[..., T], *args: object) -> T:
        """Hash a large file of the local store. Calls beyond the number of threads are queued without a time limit."""
        return await _result_of(self._verify.submit(call, *args))

    async def links(self, call: Callable[..., T], *args: object) -> T:
        """Read the manifests of a repository, perhaps all of them. Calls beyond the number of threads are queued."""
        return await _result_of(self._links.submit(call, *args))

    async def bucket(self, call: Callable[..., T], *args: object) -> T:
        """Run one operation of the bucket. The call limits its own time."""
        return await _result_of(self._bucket.submit(call, *args))

    async def token(self, call: Callable[..., T], *args: object) -> T:
        """Verify a token, for which keys may have to be downloaded. The call limits its own time."""
        return await _result_of(self._tokens.submit(call, *args))

    async def password(self, call: Callable[..., T], *args: object, was_right: bool) -> T:
        """Verify a password: CPU time, of which others get theirs first. The caller limits how many calls wait.

        Passwords that were right before do not wait for those that may be guesses.
        """
        pool = self._known_passwords if was_right else self._passwords
        return await _result_of(pool.submit(call, *args))

    async def upstream(self, target: Target, call: Callable[..., T], *args: object, deadline: float | None = None) -> T:
        """Run one operation on a repository of an upstream. The call limits its own time.

        Raises UpstreamTimeout when no thread is free before the deadline (on the monotonic clock; by default after
        MAX_QUEUED_S).
        """
        start_by = time.monotonic() + MAX_QUEUED_S if deadline is None else deadline
        return await self._pool("upstream", MAX_UPSTREAM_THREADS, target).run(target.repository, start_by, call, *args)

    async def list(self, target: Target, call: Callable[..., T], *args: object) -> T:
        """Read all pages of a list, which may take long. Raises UpstreamTimeout when no thread is free in time."""
        start_by = time.monotonic() + MAX_QUEUED_S
        return await self._pool("list", MAX_LIST_THREADS, target).run(target.repository, start_by, call, *args)

    async def download(self, target: Target, call: Callable[..., T], *args: object) -> T:
        """Run a download to its end. Calls beyond the number of threads are queued without a time limit."""
        return await self._pool("download", MAX_DOWNLOAD_THREADS, target).run(target.repository, None, call, *args)

    def close(self) -> None:
        """Start no more calls. Stop the calls in progress before."""
        self._disk.shutdown(wait=False, cancel_futures=True)
        self._verify.shutdown(wait=False, cancel_futures=True)
        self._links.shutdown(wait=False, cancel_futures=True)
        self._bucket.shutdown(wait=False, cancel_futures=True)
        self._tokens.shutdown(wait=False, cancel_futures=True)
        self._passwords.shutdown(wait=False, cancel_futures=True)
        self._known_passwords.shutdown(wait=False, cancel_futures=True)
        for pool in self._pools.values():
            pool.close()

    def _pool(self, kind: str, max_threads: int, target: Target) -> "_FairPool":
        key = (kind, target.upstream.prefix)
        if (pool := self._pools.get(key)) is None:
            pool = self._pools[key] = _FairPool(kind, max_threads, target.upstream.prefix)
        return pool


async def _result_of(call: "Future[T]") -> T:
    """Wait for a call in a thread. What it has had the loop do (`call_soon_threadsafe`) is done before this returns.

    With Python 3.14 that is not so by itself: the result of a call that has already ended does not wait for the loop.
    """
    result = asyncio.wrap_future(call)
    if result.done():
        await asyncio.sleep(0)
    return await result


def _lower_priority() -> None:
    """Let other threads go first, those of other workers too. Linux has a nice value for each thread (sched(7))."""
    with contextlib.suppress(OSError):  # some sandboxes do not have it, and nothing depends on it
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + PASSWORD_NICE)


class _FairPool:
    """The threads for one kind of work on one upstream. The repositories that wait for a thread take turns.

    Its state belongs to the event loop.
    """

    def __init__(self, kind: str, max_threads: int, prefix: str) -> None:
        self._prefix = prefix
        self._executor = ThreadPoolExecutor(max_threads, kind)
        self._free = max_threads
        self._max_per_repository = max(1, max_threads * 3 // 4)
        self._running: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def run(self, repository: str, start_by: float | None, call: Callable[..., T], *args: object) -> T:
        """Run a call in a thread when one is free for its repository. Raises UpstreamTimeout after `start_by`."""
        loop = asyncio.get_running_loop()
        if self._may_start(repository):
            self._start(repository)
        else:
            await self._wait_for_turn(repository, start_by)
        try:
            future = self._executor.submit(call, *args)
        except RuntimeError:  # the pool was closed
            self._end(repository)
            raise
        # A caller that is cancelled leaves a call that still occupies its thread.
        future.add_done_callback(lambda _: loop.is_closed() or loop.call_soon_threadsafe(self._end, repository))
        return await _result_of(future)

    def close(self) -> None:
        """Start no more calls."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _may_start(self, repository: str) -> bool:
        return self._free > 0 and self._running[repository] < self._max_per_repository

    def _start(self, repository: str) -> None:
        self._free -= 1
        self._running[repository] += 1

    async def _wait_for_turn(self, repository: str, start_by: float | None) -> None:
        """Wait until `_end` has started this call. Raises UpstreamTimeout."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(repository, deque()).append(turn)
        try:
            async with asyncio.timeout(None if start_by is None else start_by - time.monotonic()):
                await turn
        except BaseException as exc:
            if turn.done() and not turn.cancelled():
                self._end(repository)  # its turn came at the same moment
            if isinstance(exc, TimeoutError):
                raise UpstreamTimeout(
                    f"{self._prefix} did not respond in time: too many requests are waiting for it",
                    retry_after_s=RETRY_AFTER_S,
                ) from exc
            raise

    def _end(self, repository: str) -> None:
        """A call has ended: start the next one."""
        self._free += 1
        self._running[repository] -= 1
        if not self._running[repository]:
            del self._running[repository]
        for waiting in tuple(self._waiting):  # at most one repository has all the threads that it may have
            if self._may_start(waiting) and self._start_next(waiting):
                return

    def _start_next(self, repository: str) -> bool:
        """Start the first call that waits for this repository, which becomes the last in turn; whether there is one."""
        queue = self._waiting.pop(repository)
        while queue:
            turn = queue.popleft()
            if turn.done():
                continue  # its caller has given up
            if queue:
                self._waiting[repository] = queue
            self._start(repository)
            turn.set_result(None)
            return True
        return False
