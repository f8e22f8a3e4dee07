"""Concurrent requests for the same work share one execution of it."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeVar

import attrs

from dockyard.cache.client_logins import may_be_due_to_login
from dockyard.errors import RegistryError
from dockyard.oci.login import Login

T = TypeVar("T")


@attrs.frozen
class _Execution:
    task: asyncio.Task[Any]
    started_at: float
    login: Login | None


class Singleflight:
    """The work in progress in this worker, by key. A caller that is cancelled does not stop the work.

    Work that started more than `join_within_s` ago is not joined: it may be held up and end with an outdated result.
    """

    def __init__(self, join_within_s: float = float("inf")) -> None:
        self._join_within_s = join_within_s
        self._running: dict[Hashable, _Execution] = {}

    async def run(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]], login: Login | None = None) -> T:
        """The result of the work with this key, started now unless it is in progress. A key has one kind of work.

        `login` is the client's login at the upstream with which `work` is done. An error that may be due to the other
        login of the client that started the work is no result: the work is then done again.
        """
        while True:
            now = time.monotonic()
            running = self._running.get(key)
            if running is None or now - running.started_at > self._join_within_s:
                running = self._running[key] = _Execution(asyncio.create_task(work()), now, login)
                running.task.add_done_callback(lambda task: self._remove(key, task))
            task: asyncio.Task[T] = running.task
            try:
                return await asyncio.shield(task)
            except RegistryError as exc:
                if running.login == login or not may_be_due_to_login(exc):
                    raise
                self._remove(key, task)

    def _remove(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        running = self._running.get(key)
        if running and running.task is task:
            del self._running[key]
        if not task.cancelled():
            task.exception()  # retrieved here, because every caller may have been cancelled
