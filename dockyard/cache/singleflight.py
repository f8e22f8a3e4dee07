"""Concurrent requests for the same work share one execution of it."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeVar

import attrs

T = TypeVar("T")


@attrs.frozen
class _Execution:
    task: asyncio.Task[Any]
    started_at: float


class Singleflight:
    """The work in progress in this worker, by key. A caller that is cancelled does not stop the work.

    Work that started more than `join_within_s` ago is not joined: it may be held up and end with an outdated result.
    """

    def __init__(self, join_within_s: float = float("inf")) -> None:
        self._join_within_s = join_within_s
        self._running: dict[Hashable, _Execution] = {}

    async def run(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of the work with this key, started now unless it is in progress. A key has one kind of work."""
        now = time.monotonic()
        running = self._running.get(key)
        if running is None or now - running.started_at > self._join_within_s:
            running = self._running[key] = _Execution(asyncio.create_task(work()), now)
            running.task.add_done_callback(lambda task: self._remove(key, task))
        task: asyncio.Task[T] = running.task
        return await asyncio.shield(task)

    def _remove(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        running = self._running.get(key)
        if running and running.task is task:
            del self._running[key]
        if not task.cancelled():
            task.exception()  # retrieved here, because every caller may have been cancelled
