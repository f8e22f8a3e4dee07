"""Work that is done once for all in this worker who want it at the same time."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeVar

import attrs

T = TypeVar("T")


@attrs.frozen
class _Work:
    task: asyncio.Task[Any]
    began_at: float


class Singleflight:
    """What is under way, by key. A client that leaves does not stop it.

    Work that began more than `join_within_s` ago is not joined: it may be held up, and end with what held then.
    """

    def __init__(self, join_within_s: float = float("inf")) -> None:
        self._join_within_s = join_within_s
        self._running: dict[Hashable, _Work] = {}

    async def once(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Wait for the work of this key, begun now unless it is under way. One key has one kind of work."""
        now = time.monotonic()
        running = self._running.get(key)
        if running is None or now - running.began_at > self._join_within_s:
            running = self._running[key] = _Work(asyncio.create_task(work()), now)
            running.task.add_done_callback(lambda done: self._end(key, done))
        task: asyncio.Task[T] = running.task
        return await asyncio.shield(task)

    def _end(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        running = self._running.get(key)
        if running and running.task is task:
            del self._running[key]
        if not task.cancelled():
            task.exception()  # seen, though everybody who waited may have left
