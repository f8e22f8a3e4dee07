"""For operators: `/metrics`, `/healthz` and `/readyz`.

Liveness says that the event loop beats, readiness that this worker takes requests. Neither asks the upstream or the
bucket: a cache whose upstream is down is of the greatest use.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import falcon
import falcon.asgi

from dockyard import metrics
from dockyard.cache.threads import Threads

MEASURED_EVERY_S = 30.0


class Metrics:
    """`GET /metrics`: all counts of all workers, in the Prometheus text format."""

    def __init__(self, state: "State", threads: Threads) -> None:
        self._state = state
        self._threads = threads

    async def on_get(self, _: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """200."""
        resp.content_type = metrics.CONTENT_TYPE
        resp.data = await self._threads.disk(self._collect)

    def _collect(self) -> bytes:
        return metrics.expose(self._state.measure())

    on_head = on_get


class State:
    """What is measured when somebody asks: the size of the local store, what waits for the bucket, the breakers."""

    def __init__(
        self, blobs: Path, unpublished: Path, open_breakers: Callable[[], dict[str, bool]], limit_bytes: int
    ) -> None:
        self._blobs = blobs
        self._unpublished = unpublished
        self._open_breakers = open_breakers
        self._limit_bytes = limit_bytes
        self._measured_at = float("-inf")
        self._size_bytes = 0

    def measure(self) -> list[metrics.Measure]:
        """Measure now; the directory of blobs twice a minute at most. Blocks."""
        if time.monotonic() - self._measured_at > MEASURED_EVERY_S:
            self._measured_at = time.monotonic()
            self._size_bytes = _size(self._blobs)
        waiting = len(os.listdir(self._unpublished)) if self._unpublished.is_dir() else 0
        return [
            metrics.Measure("dockyard_local_bytes", "Bytes of blobs in the local store.", {"": self._size_bytes}),
            metrics.Measure("dockyard_local_limit_bytes", "Cap of the local store; 0: none.", {"": self._limit_bytes}),
            metrics.Measure("dockyard_unpublished", "Objects that the bucket does not have yet.", {"": waiting}),
            metrics.Measure(
                "dockyard_breaker_open",
                "Whether an upstream is known to be down or limits us.",
                {upstream: float(is_open) for upstream, is_open in self._open_breakers().items()},
            ),
        ]


class Health:
    """`GET /healthz` and `/readyz`."""

    async def on_get(self, _: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """200: that there is an answer is the answer."""
        resp.content_type = "application/json"
        resp.set_header("cache-control", "no-store")
        resp.data = json.dumps({"status": "ok"}).encode()

    on_head = on_get


class Readiness:
    """Whether this worker takes requests: not before it has its place, and not while it drains."""

    def __init__(self, is_ready: Callable[[], bool]) -> None:
        self._is_ready = is_ready

    async def on_get(self, _: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """200, or 503 while draining."""
        is_ready = self._is_ready()
        resp.status = falcon.HTTP_200 if is_ready else falcon.HTTP_503
        resp.set_header("cache-control", "no-store")
        resp.data = json.dumps({"status": "ok" if is_ready else "draining"}).encode()

    on_head = on_get


def _size(root: Path) -> int:
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_size
            except OSError:
                continue
    return total
