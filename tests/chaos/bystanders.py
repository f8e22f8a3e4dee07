"""Who looks on while a fault strikes others: the control client (I10), the liveness check (I9), the memory (I5)."""

import threading
import time
from collections.abc import Callable
from statistics import quantiles
from typing import Self

import attrs

from tests.support.deployment import Deployment
from tests.support.http_client import Response, send_request
from tests.support.worker_state import MemorySampler

MIB = 1024 * 1024
CONTROL_PER_S = 20
HEALTH_PER_S = 10
HEALTHZ_S = 0.1
# Two cores that everything shares, the origins and the clients too: below this, times say nothing of Dockyard.
CONTROL_FLOOR_S = 0.5
HEALTHZ_FLOOR_S = 1.5
WORKER_BYTES = 128 * MIB
CONNECTION_BYTES = 256 * 1024
WORKER_BYTES_AT_MOST = 384 * MIB
BASELINE_S = 1.0
PACE_OF = 20


@attrs.define
class Times:
    """How long requests took, and what went wrong with them."""

    took_s: list[float] = attrs.field(factory=list)
    errors: list[str] = attrs.field(factory=list)

    def p99(self) -> float:
        """The time that one in a hundred exceeds; of few, the largest."""
        return max(self.took_s) if len(self.took_s) < 100 else quantiles(self.took_s, n=100)[-1]

    def median(self) -> float:
        """The time that half of them exceed."""
        return sorted(self.took_s)[len(self.took_s) // 2]


class Bystanders:
    """Watches a deployment in threads of its own, from a calm moment on. `strike` tells it that the calm is over.

    With `again_within_s`, a connection may end with a worker: it is made again, once, and then answered in that time.
    """

    def __init__(
        self, deployment: Deployment, control_path: str, control_body: bytes, again_within_s: float = 0.0
    ) -> None:
        self._deployment = deployment
        self._again_within_s = again_within_s
        self._path = control_path
        self._body = control_body
        self.calm = Times()
        self.control = self.calm
        self.health = Times()
        self.memory = MemorySampler(deployment)
        self._done = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(CONTROL_PER_S, self._ask_control), daemon=True),
            threading.Thread(target=self._repeat, args=(HEALTH_PER_S, self._ask_health), daemon=True),
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

    def strike(self) -> None:
        """From here on times count as those under the fault."""
        self.control = Times()

    def pace_s(self) -> float:
        """How long a hit takes now, for the control client: half of the answers of late took longer."""
        return Times(took_s=self.control.took_s[-PACE_OF:]).median() if self.control.took_s else 0.0

    def problems(self, connections: int) -> list[str]:
        """What they saw that must not be. `connections`: the most that were open to Dockyard."""
        found = [f"control client: {problem}" for problem in dict.fromkeys(self.control.errors)]
        bound = max(2 * self.calm.p99(), CONTROL_FLOOR_S, self._again_within_s)
        if self.control.took_s and self.control.p99() > bound:
            found.append(f"control client: p99 {self.control.p99():.3f} s, {self.calm.p99():.3f} s without the fault")
        found += [f"/healthz: {problem}" for problem in dict.fromkeys(self.health.errors)]
        if self.health.median() > HEALTHZ_S or self.health.p99() > max(HEALTHZ_FLOOR_S, self._again_within_s):
            found.append(f"/healthz: median {self.health.median():.3f} s, p99 {self.health.p99():.3f} s")
        return found + self.memory_problems(connections)

    def memory_problems(self, connections: int) -> list[str]:
        """Whether a worker grew too large (I5)."""
        bound_bytes = min(WORKER_BYTES + connections * CONNECTION_BYTES, WORKER_BYTES_AT_MOST)
        if self.memory.peak > bound_bytes:
            return [f"a worker of {self.memory.peak // MIB} MiB, expected {bound_bytes // MIB} MiB"]
        return []

    def _repeat(self, per_s: float, once: Callable[[], None]) -> None:
        began_at, count = time.monotonic(), 0
        while not self._done.wait(max(0.0, began_at + count / per_s - time.monotonic())):
            once()
            count += 1

    def _ask_control(self) -> None:
        self._ask(self.control, self._path, self._body)

    def _ask_health(self) -> None:
        self._ask(self.health, "/healthz")

    def _ask(self, times: Times, path: str, body: bytes | None = None) -> None:
        began_at = time.monotonic()
        try:
            reply = self._ask_once(path)
        except OSError as exc:
            times.errors.append(str(exc))
            return
        times.took_s.append(time.monotonic() - began_at)
        if reply.status != 200 or (body is not None and reply.body != body):
            times.errors.append(f"{reply.status}, {len(reply.body)} bytes")

    def _ask_once(self, path: str) -> Response:
        try:
            return send_request(self._deployment.address, path)
        except ConnectionError:
            if not self._again_within_s:
                raise
        return send_request(self._deployment.address, path)
