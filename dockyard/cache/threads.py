"""The thread pools of a worker: the one crossing between the event loop and code that blocks.

One bounded pool for each kind of work, so that one kind that hangs (an upstream that does not respond) cannot use up
the threads of another.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

MAX_DISK_THREADS = 8
MAX_UPSTREAM_THREADS = 32
MAX_LIST_THREADS = 8
MAX_BUCKET_THREADS = 16
MAX_DOWNLOAD_THREADS = 64

T = TypeVar("T")


class Threads:
    """The pools of one worker. Threads start when they are first needed."""

    def __init__(self) -> None:
        self._disk = ThreadPoolExecutor(MAX_DISK_THREADS, "disk")
        self._upstream = ThreadPoolExecutor(MAX_UPSTREAM_THREADS, "upstream")
        self._lists = ThreadPoolExecutor(MAX_LIST_THREADS, "list")
        self._bucket = ThreadPoolExecutor(MAX_BUCKET_THREADS, "bucket")
        self._downloads = ThreadPoolExecutor(MAX_DOWNLOAD_THREADS, "download")

    async def disk(self, call: Callable[..., T], *args: object) -> T:
        """Run a short call that uses the local store."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, call, *args)

    async def upstream(self, call: Callable[..., T], *args: object) -> T:
        """Run one operation of an upstream. The call limits its own time."""
        return await asyncio.get_running_loop().run_in_executor(self._upstream, call, *args)

    async def list(self, call: Callable[..., T], *args: object) -> T:
        """Read all pages of a list, which may take long. Calls beyond the number of threads are queued."""
        return await asyncio.get_running_loop().run_in_executor(self._lists, call, *args)

    async def bucket(self, call: Callable[..., T], *args: object) -> T:
        """Run one operation of the bucket. The call limits its own time."""
        return await asyncio.get_running_loop().run_in_executor(self._bucket, call, *args)

    async def download(self, call: Callable[..., T], *args: object) -> T:
        """Run a download to its end. Calls beyond the number of threads are queued."""
        return await asyncio.get_running_loop().run_in_executor(self._downloads, call, *args)

    def close(self) -> None:
        """Start no more calls. Stop the calls in progress before."""
        for pool in (self._disk, self._upstream, self._lists, self._bucket, self._downloads):
            pool.shutdown(wait=False, cancel_futures=True)
