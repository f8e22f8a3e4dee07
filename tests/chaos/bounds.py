"""The bound on memory (I5): so much for each worker, and so much for each connection that it has.

A worker that has let connections go may keep their memory for the next: what counts is the most it has had at once.
"""

import threading
from typing import Self

import attrs

from tests.support.deployment import Deployment
from tests.support.worker_state import open_files, resident_bytes

SAMPLE_EVERY_S = 0.1
BASE_BYTES = 128 * 1024 * 1024
BYTES_PER_CONNECTION = 256 * 1024
NEVER_ABOVE_BYTES = 384 * 1024 * 1024


@attrs.frozen
class Sample:
    """One worker at one instant; `connections` is the most sockets it has had, above those from before the load."""

    resident: int
    connections: int

    @property
    def allowed(self) -> int:
        return min(BASE_BYTES + BYTES_PER_CONNECTION * self.connections, NEVER_ABOVE_BYTES)

    @property
    def excess(self) -> int:
        """Bytes over the bound; negative when below it."""
        return self.resident - self.allowed


class MemoryBound:
    """Samples every worker ten times a second while the block runs; `worst` is the one nearest to its bound."""

    def __init__(self, deployment: Deployment) -> None:
        self.worst = Sample(0, 0)
        self.peak = 0
        self.samples = 0
        self._deployment = deployment
        self._idle = {pid: _sockets(pid) for pid in deployment.dockyard.worker_pids()}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def assert_held(self) -> None:
        """No sample was above its bound."""
        assert self.samples
        assert self.worst.excess <= 0, f"{self.worst} is {self.worst.excess} bytes above {self.worst.allowed}"

    def _watch(self) -> None:
        usual = min(self._idle.values())
        most: dict[int, int] = {}
        while not self._done.wait(SAMPLE_EVERY_S):
            for pid in self._deployment.dockyard.worker_pids():
                resident = resident_bytes(pid)
                most[pid] = max(most.get(pid, 0), _sockets(pid) - self._idle.get(pid, usual))
                sample = Sample(resident, most[pid])
                self.peak = max(self.peak, resident)
                self.samples += 1
                if sample.excess > self.worst.excess:
                    self.worst = sample


def _sockets(pid: int) -> int:
    return sum(what.startswith("socket:") for what in open_files(pid).values())
