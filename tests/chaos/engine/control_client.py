"""Who watches a Dockyard while a fault is active: the control client, the liveness check and the memory sampler.

The control client requests a cached blob of an upstream that has no fault: it must get it, and about as fast as before.
`/healthz` must be answered at once; it depends on neither upstream nor bucket. The memory of each worker is bounded.
"""

import threading
import time
from collections.abc import Callable
from statistics import quantiles
from typing import Self

import attrs

from tests.chaos.engine.memory import max_worker_bytes
from tests.support.busy_machine import is_within, measure_work_s
from tests.support.deployment import Deployment
from tests.support.http_client import Response, send_request
from tests.support.worker_state import MemorySampler

MIB = 1024 * 1024
REQUESTS_PER_S = 20
MEASUREMENTS_PER_S = 0.5  # of how busy the machine is
HEALTH_CHECKS_PER_S = 10
MAX_HEALTHZ_S = 0.1
# The machine has two cores, which the fake registries and the clients use as well: shorter times than these say
# nothing about Dockyard.
CONTROL_FLOOR_S = 0.5
HEALTHZ_FLOOR_S = 1.5
BASELINE_S = 1.0
RECENT_RESPONSES = 20


@attrs.define
class Times:
    """How long requests took, and their errors."""

    took_s: list[float] = attrs.field(factory=list)
    errors: list[str] = attrs.field(factory=list)

    def p99(self) -> float:
        """The 99th percentile; of fewer than 100, the largest."""
        return max(self.took_s) if len(self.took_s) < 100 else quantiles(self.took_s, n=100)[-1]

    def median(self) -> float:
        """The median."""
        return sorted(self.took_s)[len(self.took_s) // 2]


class ControlClient:
    """Watches a deployment in threads of its own, first without the fault. `mark_fault` says when the fault begins.

    With `reconnects_within_s`, a connection may break with its worker: it is made again, once, and the response must
    come within that time.
    """

    def __init__(
        self, deployment: Deployment, control_path: str, control_body: bytes, reconnects_within_s: float = 0.0
    ) -> None:
        self._deployment = deployment
        self._reconnects_within_s = reconnects_within_s
        self._path = control_path
        self._body = control_body
        self.before_fault = Times()
        self.control = self.before_fault
        self.health = Times()
        self.memory = MemorySampler(deployment)
        self._work_s = 0.0
        self._done = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(REQUESTS_PER_S, self._request_blob), daemon=True),
            threading.Thread(target=self._repeat, args=(HEALTH_CHECKS_PER_S, self._request_health), daemon=True),
            threading.Thread(target=self._repeat, args=(MEASUREMENTS_PER_S, self._measure_machine), daemon=True),
        ]

    def __enter__(self) -> Self:
        self.memory.__enter__()
        for thread in self._threads:
            thread.start()
        time.sleep(BASELINE_S)  # the control client's times without a fault
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()
        self.memory.__exit__()

    def mark_fault(self) -> None:
        """Count times from now on as those under the fault."""
        self.control = Times()

    def recent_median_s(self) -> float:
        """The median time of the control client's last responses; 0 if there are none."""
        return Times(took_s=self.control.took_s[-RECENT_RESPONSES:]).median() if self.control.took_s else 0.0

    def find_problems(self, max_connections: int) -> list[str]:
        """What was not as it must be. `max_connections`: the most that were open to Dockyard at a time."""
        found = [f"control client: {problem}" for problem in dict.fromkeys(self.control.errors)]
        bound_s = max(2 * self.before_fault.p99(), CONTROL_FLOOR_S, self._reconnects_within_s)
        if self.control.took_s and not self._is_within(self.control.p99(), bound_s):
            found.append(
                f"control client: p99 {self.control.p99():.3f} s, {self.before_fault.p99():.3f} s without the fault"
            )
        found += [f"/healthz: {problem}" for problem in dict.fromkeys(self.health.errors)]
        max_p99_s = max(HEALTHZ_FLOOR_S, self._reconnects_within_s)
        is_fast = self._is_within(self.health.median(), MAX_HEALTHZ_S)
        if not is_fast or not self._is_within(self.health.p99(), max_p99_s):
            found.append(f"/healthz: median {self.health.median():.3f} s, p99 {self.health.p99():.3f} s")
        return found + self.find_memory_problems(max_connections)

    def find_memory_problems(self, max_connections: int) -> list[str]:
        """Whether a worker used more memory than it may with so many connections."""
        bound_bytes = max_worker_bytes(max_connections)
        if self.memory.peak > bound_bytes:
            return [f"a worker of {self.memory.peak // MIB} MiB, expected {bound_bytes // MIB} MiB"]
        return []

    def _is_within(self, took_s: float, bound_s: float) -> bool:
        """Whether that is no longer than the bound, on the machine as it was at its busiest during the fault."""
        return is_within(took_s, 0, slack_s=bound_s, control_s=self._work_s)

    def _measure_machine(self) -> None:
        self._work_s = max(self._work_s, measure_work_s())

    def _repeat(self, per_s: float, once: Callable[[], None]) -> None:
        began_at, count = time.monotonic(), 0
        while not self._done.wait(max(0.0, began_at + count / per_s - time.monotonic())):
            once()
            count += 1

    def _request_blob(self) -> None:
        self._request(self.control, self._path, self._body)

    def _request_health(self) -> None:
        self._request(self.health, "/healthz")

    def _request(self, times: Times, path: str, body: bytes | None = None) -> None:
        began_at = time.monotonic()
        try:
            response = self._send(path)
        except OSError as exc:
            times.errors.append(str(exc))
            return
        times.took_s.append(time.monotonic() - began_at)
        if response.status != 200 or (body is not None and response.body != body):
            times.errors.append(f"{response.status}, {len(response.body)} bytes")

    def _send(self, path: str) -> Response:
        try:
            return send_request(self._deployment.address, path)
        except ConnectionError:
            if not self._reconnects_within_s:
                raise
        return send_request(self._deployment.address, path)
