"""The bridge between the event loop and the blocking rooms: named, bounded thread pools, one per class of work.

A class that hangs (an upstream that does not answer) fills its own pool and starves no other.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

DISK_THREADS = 8
UPSTREAM_THREADS = 32
LIST_THREADS = 8
BUCKET_THREADS = 16
FILL_THREADS = 64

T = TypeVar("T")


class Threads:
    """The pools of one worker. Threads are started when they are first needed."""

    def __init__(self) -> None:
        self._disk = ThreadPoolExecutor(DISK_THREADS, "disk")
        self._upstream = ThreadPoolExecutor(UPSTREAM_THREADS, "upstream")
        self._lists = ThreadPoolExecutor(LIST_THREADS, "list")
        self._bucket = ThreadPoolExecutor(BUCKET_THREADS, "bucket")
        self._fills = ThreadPoolExecutor(FILL_THREADS, "fill")

    async def disk(self, call: Callable[..., T], *arguments: object) -> T:
        """Run a short call that touches the local store."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, call, *arguments)

    async def upstream(self, call: Callable[..., T], *arguments: object) -> T:
        """Run a question to an upstream. Its time limit is the call's own."""
        return await asyncio.get_running_loop().run_in_executor(self._upstream, call, *arguments)

    async def listing(self, call: Callable[..., T], *arguments: object) -> T:
        """Run a walk over the pages of a list, which may take long. More of them than threads wait for a place."""
        return await asyncio.get_running_loop().run_in_executor(self._lists, call, *arguments)

    async def bucket(self, call: Callable[..., T], *arguments: object) -> T:
        """Run a question to the bucket. Its time limit is the call's own."""
        return await asyncio.get_running_loop().run_in_executor(self._bucket, call, *arguments)

    async def fill(self, call: Callable[..., T], *arguments: object) -> T:
        """Run a fill to its end. More of them than threads wait for a place."""
        return await asyncio.get_running_loop().run_in_executor(self._fills, call, *arguments)

    def close(self) -> None:
        """Take no more work. What runs must have been told to stop."""
        for pool in (self._disk, self._upstream, self._lists, self._bucket, self._fills):
            pool.shutdown(wait=False, cancel_futures=True)
