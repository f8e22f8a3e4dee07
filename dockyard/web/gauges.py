"""Gauges that are measured for each request of `/metrics`. Blocking."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from dockyard.metrics import MeasuredGauge

MIN_SIZE_INTERVAL_S = 30.0


class Gauges:
    """The size of the local store, the length of the outbox, and the states of the circuit breakers.

    `measure_bytes` lists the files of the local store, `open_breakers` returns whether the breaker of each upstream is
    open, `max_bytes` is the cap of the local store.
    """

    def __init__(
        self,
        measure_bytes: Callable[[], int],
        outbox: Path,
        open_breakers: Callable[[], Mapping[str, bool]],
        max_bytes: int,
    ) -> None:
        self._measure_bytes = measure_bytes
        self._outbox = outbox
        self._open_breakers = open_breakers
        self._max_bytes = max_bytes
        self._measured_at = float("-inf")
        self._size_bytes = 0

    def measure(self) -> list[MeasuredGauge]:
        """Measure all. The size of the local store is measured again after MIN_SIZE_INTERVAL_S only."""
        if time.monotonic() - self._measured_at > MIN_SIZE_INTERVAL_S:
            self._measured_at = time.monotonic()
            self._size_bytes = self._measure_bytes()
        unpublished = len(os.listdir(self._outbox)) if self._outbox.is_dir() else 0
        return [
            MeasuredGauge("dockyard_local_bytes", "Disk space of the local store, in bytes.", {"": self._size_bytes}),
            MeasuredGauge(
                "dockyard_local_limit_bytes", "Maximum size of the local store; 0: no maximum.", {"": self._max_bytes}
            ),
            MeasuredGauge("dockyard_unpublished", "Objects that are not in the bucket yet.", {"": unpublished}),
            MeasuredGauge(
                "dockyard_breaker_open",
                "Whether the circuit breaker of an upstream is open (1) or not (0).",
                {upstream: float(is_open) for upstream, is_open in self._open_breakers().items()},
            ),
        ]
