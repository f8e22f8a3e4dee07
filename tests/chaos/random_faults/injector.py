"""Inject random faults into a Dockyard and what it depends on.

    clients --- Dockyard (several workers, a fake clock) --- fake registry
                            `--- toxiproxy --- MinIO

A random fault is a context manager: it is active while the block runs. All choices depend on a seed.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from random import Random
from typing import Self

import attrs

from tests.chaos.engine.audit import audit_directory
from tests.chaos.engine.fake_clock import FakeClock
from tests.s3.service.bucket_view import BucketView
from tests.support import faults
from tests.support.deployment import Deployment, eventually
from tests.support.fake_registry import Change, FakeRegistry
from tests.support.toxiproxy import TcpProxy

HOUR_S = 3600
WORKERS_WITHIN_S = 20.0
RandomFault = Callable[["FaultySystem", Random], AbstractContextManager[None]]


@attrs.frozen(eq=False)
class FaultySystem:
    """A Dockyard, its fake registry, its bucket (`bucket_view`, reached through `bucket_network`), and its clock."""

    fake_registry: FakeRegistry
    deployment: Deployment
    bucket_view: BucketView
    bucket_network: TcpProxy
    clock: FakeClock
    workers: int
    damaged: dict[str, bytes] = attrs.field(factory=dict)  # keys of the bucket with wrong bytes that a test put there

    def worker(self, rng: Random) -> int | None:
        """A random worker; None if there is none at the moment."""
        pids = self.deployment.dockyard.worker_pids()
        return rng.choice(pids) if pids else None

    def audit(self) -> list[str]:
        """Check all that is stored; one line for each object that is not what its name says."""
        return audit_directory(self.deployment.dockyard.storage) + self.bucket_view.audit()

    def wait_for_workers(self) -> None:
        """Wait until all workers are running."""
        eventually(
            lambda: len(self.deployment.dockyard.worker_pids()) == self.workers,
            "all workers are running",
            WORKERS_WITHIN_S,
        )


def send(pid: int | None, number: signal.Signals) -> None:
    """Send a signal to a worker, if it is still running."""
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@contextlib.contextmanager
def refused(system: FaultySystem, _: Random) -> Iterator[None]:
    """U01: the upstream refuses connections."""
    system.fake_registry.listener.close()
    try:
        yield
    finally:
        system.fake_registry.listener.open()


@contextlib.contextmanager
def silent(system: FaultySystem, _: Random) -> Iterator[None]:
    """U05: the upstream accepts connections and sends nothing; the responses come when the fault is over."""
    over = threading.Event()
    rule = system.fake_registry.on(None, faults.silent(over))
    try:
        yield
    finally:
        system.fake_registry.remove_rules(rule)
        over.set()


@contextlib.contextmanager
def stalled(system: FaultySystem, _: Random) -> Iterator[None]:
    """U07: bodies stall in the middle."""
    over = threading.Event()
    rule = system.fake_registry.on("blob", faults.stalled(0.5, over))
    try:
        yield
    finally:
        system.fake_registry.remove_rules(rule)
        over.set()


def responding(change: Callable[[Random], Change], kind: str | None = None) -> RandomFault:
    """The upstream sends wrong responses, changed at random."""

    @contextlib.contextmanager
    def fault(system: FaultySystem, rng: Random) -> Iterator[None]:
        rule = system.fake_registry.on(kind, change(rng))
        try:
            yield
        finally:
            system.fake_registry.remove_rules(rule)

    return fault


@contextlib.contextmanager
def killed(system: FaultySystem, rng: Random) -> Iterator[None]:
    """P01, P02: kill -9 of a worker."""
    send(system.worker(rng), signal.SIGKILL)
    yield


@contextlib.contextmanager
def stopped(system: FaultySystem, rng: Random) -> Iterator[None]:
    """P04: SIGSTOP of a worker, and SIGCONT if it has not been replaced."""
    pid = system.worker(rng)
    send(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if pid in system.deployment.dockyard.worker_pids():
            send(pid, signal.SIGCONT)


@contextlib.contextmanager
def clock_off(system: FaultySystem, rng: Random) -> Iterator[None]:
    """P08: the wall clock jumps, and jumps back."""
    system.clock.set(rng.choice([-HOUR_S, HOUR_S, 24 * HOUR_S]))
    try:
        yield
    finally:
        system.clock.set(0)


@contextlib.contextmanager
def bucket_refused(system: FaultySystem, _: Random) -> Iterator[None]:
    """S01: the bucket refuses connections."""
    system.bucket_network.refuse_connections()
    try:
        yield
    finally:
        system.bucket_network.restore()


@contextlib.contextmanager
def bucket_slow(system: FaultySystem, _: Random) -> Iterator[None]:
    """S02: every response of the bucket takes a second longer."""
    system.bucket_network.add_latency(1.0)
    try:
        yield
    finally:
        system.bucket_network.restore()


@contextlib.contextmanager
def bucket_cut(system: FaultySystem, rng: Random) -> Iterator[None]:
    """S04, S12: connections to the bucket break in the middle."""
    system.bucket_network.cut(rng.randrange(200, 60_000), by_reset=rng.random() < 0.5)
    try:
        yield
    finally:
        system.bucket_network.restore()


OUTAGES: Mapping[str, RandomFault] = {
    "U01": refused,
    "U05": silent,
    "U13": responding(lambda _: faults.error_response(429, "TOOMANYREQUESTS", "1")),
}
HISTORY: Mapping[str, RandomFault] = {
    **OUTAGES,
    "P01": killed,
    "P04": stopped,
    "P08": clock_off,
    "S01": bucket_refused,
}
ALL: Mapping[str, RandomFault] = {
    **HISTORY,
    "U06": responding(lambda _: faults.slow(512 * 1024), "blob"),
    "U07": stalled,
    "U08": responding(lambda rng: faults.cut(rng.random(), "rst")),
    "U09": responding(lambda rng: faults.cut(rng.random(), "fin")),
    "U09 close": responding(lambda rng: _both(faults.close_delimited(), faults.short(rng.randrange(1, 100)))),
    "U10": responding(lambda rng: faults.flipped(rng.randrange(600)), "blob"),
    "U10 manifest": responding(lambda rng: faults.flipped(rng.randrange(300)), "manifest"),
    "U11": responding(lambda rng: faults.wrong_length(rng.choice([-5, 7])), "blob"),
    "U14": responding(lambda rng: faults.error_response(rng.choice([500, 502, 503, 504]))),
    "U19": responding(lambda _: faults.html_page()),
    "U21": responding(lambda _: faults.ignoring_range(), "blob"),
    "S02": bucket_slow,
    "S04": bucket_cut,
}


def _both(first: Change, second: Change) -> Change:
    return lambda request, response: second(request, first(request, response))


@attrs.frozen
class Episode:
    """A random fault, and when it was active (monotonic)."""

    kind: str
    began_at: float
    ended_at: float


class FaultInjector:
    """Injects one random fault after the other while the block runs; `episodes` are those that are over."""

    def __init__(
        self,
        system: FaultySystem,
        faults: Mapping[str, RandomFault],
        rng: Random,
        *,
        duration_s: Sequence[float],
        pause_s: Sequence[float],
    ) -> None:
        self.episodes: list[Episode] = []
        self.is_on = False
        self._town = system
        self._troubles = faults
        self._dice = rng
        self._duration_s = duration_s
        self._pause_s = pause_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._inject, name="injector", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _inject(self) -> None:
        kinds: list[str] = []
        while not self._done.wait(self._dice.uniform(*self._pause_s)):
            if not kinds:  # each kind is injected once before one is injected again
                kinds = self._dice.sample(sorted(self._troubles), len(self._troubles))
            kind = kinds.pop()
            began_at = time.monotonic()
            with self._troubles[kind](self._town, self._dice):
                self.is_on = True
                self._done.wait(self._dice.uniform(*self._duration_s))
                self.is_on = False
            self.episodes.append(Episode(kind, began_at, time.monotonic()))
