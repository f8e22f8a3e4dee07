"""The limit on memory: so much for each worker, and so much for each of its connections.

A worker may keep the memory of closed connections for later ones: what counts is the most that it has had at once.
"""

import threading
from typing import Self

import attrs

from tests.support.deployment import Deployment
from tests.support.worker_state import open_files, resident_bytes

SAMPLE_EVERY_S = 0.1
WORKER_BYTES = 128 * 1024 * 1024
CONNECTION_BYTES = 256 * 1024
MAX_WORKER_BYTES = 384 * 1024 * 1024


def max_worker_bytes(connections: int) -> int:
    """The memory that a worker may use with so many connections."""
    return min(WORKER_BYTES + CONNECTION_BYTES * connections, MAX_WORKER_BYTES)


@attrs.frozen
class Sample:
    """One worker at one time; `connections` is the most sockets it has had, without those from before the load."""

    resident: int
    connections: int

    @property
    def allowed(self) -> int:
        return max_worker_bytes(self.connections)

    @property
    def excess(self) -> int:
        """Bytes above the limit; negative if below it."""
        return self.resident - self.allowed


class MemoryLimit:
    """Samples every worker ten times a second while the block runs; `worst` is the sample nearest to its limit."""

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
        """Check that no sample was above its limit."""
        assert self.samples
        assert self.worst.excess <= 0, f"{self.worst} is {self.worst.excess} bytes above {self.worst.allowed}"

    def _watch(self) -> None:
        usual = min(self._idle.values())
        most: dict[int, int] = {}
        is_last = False
        while not is_last:  # at the end too: the block may be shorter than the time between samples
            is_last = self._done.wait(SAMPLE_EVERY_S)
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
