"""The endpoints for operators: `/metrics`, `/healthz` and `/readyz`.

Liveness means that the event loop runs, readiness that this worker should get requests. Neither depends on the
upstreams or the bucket: while they are down, cached images must stay available.
"""

import json
from collections.abc import Callable

import falcon
import falcon.asgi

from dockyard import metrics
from dockyard.cache.threads import Threads
from dockyard.web.gate import Gate
from dockyard.web.gauges import Gauges
from dockyard.web.request_record import SCOPE_KEY


class MetricsEndpoint:
    """`GET /metrics`: the metrics of all workers, in the Prometheus text format."""

    def __init__(self, gate: Gate, gauges: Gauges, threads: Threads) -> None:
        self._gate = gate
        self._gauges = gauges
        self._threads = threads

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """200. Raises RegistryError."""
        await self._gate.check_status(req, resp, req.scope[SCOPE_KEY])
        resp.content_type = metrics.CONTENT_TYPE
        resp.data = await self._threads.disk(self._collect)

    def _collect(self) -> bytes:
        return metrics.render(self._gauges.measure())

    on_head = on_get


class LivenessEndpoint:
    """`GET /healthz`: the event loop of this worker runs."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """200. Raises RegistryError."""
        await self._gate.check_status(req, resp, req.scope[SCOPE_KEY])
        resp.content_type = "application/json"
        resp.set_header("cache-control", "no-store")
        resp.data = json.dumps({"status": "ok"}).encode()

    on_head = on_get


class ReadinessEndpoint:
    """`GET /readyz`: whether load balancers should send requests to this worker."""

    def __init__(self, gate: Gate, is_ready: Callable[[], bool]) -> None:
        self._gate = gate
        self._is_ready = is_ready

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """200, or 503 while the server drains. Raises RegistryError."""
        await self._gate.check_status(req, resp, req.scope[SCOPE_KEY])
        is_ready = self._is_ready()
        resp.status = falcon.HTTP_200 if is_ready else falcon.HTTP_503
        resp.set_header("cache-control", "no-store")
        resp.data = json.dumps({"status": "ok" if is_ready else "draining"}).encode()

    on_head = on_get
