"""A Dockyard with everything that can fail around it, and the variants that a injector draws from.

    clients --- Dockyard (real workers, a clock of its own) --- fake registry
                            `--- toxiproxy --- MinIO

A variant is a context: it begins, lasts as long as the block, and is over. All of them are drawn by a seed.
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
SETTLE_S = 20.0
UpstreamVariant = Callable[["FaultySystem", Random], AbstractContextManager[None]]


@attrs.frozen(eq=False)
class FaultySystem:
    """All of it."""

    fake_registry: FakeRegistry
    deployment: Deployment
    place: BucketView
    bucket: TcpProxy
    clock: FakeClock
    workers: int

    def worker(self, rng: Random) -> int | None:
        """One of the workers; None when there is none at the moment."""
        pids = self.deployment.dockyard.worker_pids()
        return rng.choice(pids) if pids else None

    def audit(self) -> list[str]:
        """Read all that is stored: one line for each object that is not what its name says."""
        return audit_directory(self.deployment.dockyard.storage) + self.place.audit()

    def settle(self) -> None:
        """Wait until all workers serve and nothing is being fetched or published."""
        eventually(
            lambda: len(self.deployment.dockyard.worker_pids()) == self.workers, "all workers are back", SETTLE_S
        )


def send(pid: int | None, number: signal.Signals) -> None:
    """Send a signal to a worker, if it is still there."""
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@contextlib.contextmanager
def refused(system: FaultySystem, _: Random) -> Iterator[None]:
    """U01: nobody listens at the upstream."""
    system.fake_registry.listener.close()
    try:
        yield
    finally:
        system.fake_registry.listener.open()


@contextlib.contextmanager
def silent(system: FaultySystem, _: Random) -> Iterator[None]:
    """U05: the upstream takes connections and says nothing; what was asked is answered when it is over."""
    over = threading.Event()
    rule = system.fake_registry.on(None, faults.silent(over))
    try:
        yield
    finally:
        system.fake_registry.remove_rules(rule)
        over.set()


@contextlib.contextmanager
def stalled(system: FaultySystem, _: Random) -> Iterator[None]:
    """U07: bodies stop in the middle."""
    over = threading.Event()
    rule = system.fake_registry.on("blob", faults.stalled(0.5, over))
    try:
        yield
    finally:
        system.fake_registry.remove_rules(rule)
        over.set()


def answering(change: Callable[[Random], Change], kind: str | None = None) -> UpstreamVariant:
    """The upstream responses wrongly, in a way that is drawn."""

    @contextlib.contextmanager
    def variant(system: FaultySystem, rng: Random) -> Iterator[None]:
        rule = system.fake_registry.on(kind, change(rng))
        try:
            yield
        finally:
            system.fake_registry.remove_rules(rule)

    return variant


@contextlib.contextmanager
def killed(system: FaultySystem, rng: Random) -> Iterator[None]:
    """P01, P02: kill -9 of a worker."""
    send(system.worker(rng), signal.SIGKILL)
    yield


@contextlib.contextmanager
def frozen(system: FaultySystem, rng: Random) -> Iterator[None]:
    """P04: SIGSTOP of a worker, and SIGCONT if it has not been replaced meanwhile."""
    pid = system.worker(rng)
    send(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if pid in system.deployment.dockyard.worker_pids():
            send(pid, signal.SIGCONT)


@contextlib.contextmanager
def clock_off(system: FaultySystem, rng: Random) -> Iterator[None]:
    """P08: the wall clock jumps, and back."""
    system.clock.set(rng.choice([-HOUR_S, HOUR_S, 24 * HOUR_S]))
    try:
        yield
    finally:
        system.clock.set(0)


@contextlib.contextmanager
def bucket_refused(system: FaultySystem, _: Random) -> Iterator[None]:
    """S01: nobody listens at the bucket."""
    system.bucket.refuse_connections()
    try:
        yield
    finally:
        system.bucket.restore()


@contextlib.contextmanager
def bucket_slow(system: FaultySystem, _: Random) -> Iterator[None]:
    """S02: every answer of the bucket takes a second more."""
    system.bucket.add_latency(1.0)
    try:
        yield
    finally:
        system.bucket.restore()


@contextlib.contextmanager
def bucket_cut(system: FaultySystem, rng: Random) -> Iterator[None]:
    """S04, S12: connections of the bucket break in the middle."""
    system.bucket.cut(rng.randrange(200, 60_000), by_reset=rng.random() < 0.5)
    try:
        yield
    finally:
        system.bucket.restore()


OUTAGES: Mapping[str, UpstreamVariant] = {
    "U01": refused,
    "U05": silent,
    "U13": answering(lambda _: faults.error_response(429, "TOOMANYREQUESTS", "1")),
}
HISTORY: Mapping[str, UpstreamVariant] = {
    **OUTAGES,
    "P01": killed,
    "P04": frozen,
    "P08": clock_off,
    "S01": bucket_refused,
}
ALL: Mapping[str, UpstreamVariant] = {
    **HISTORY,
    "U06": answering(lambda _: faults.slow(512 * 1024), "blob"),
    "U07": stalled,
    "U08": answering(lambda rng: faults.cut(rng.random(), "rst")),
    "U09": answering(lambda rng: faults.cut(rng.random(), "fin")),
    "U09 close": answering(lambda rng: _both(faults.close_delimited(), faults.short(rng.randrange(1, 100)))),
    "U10": answering(lambda rng: faults.flipped(rng.randrange(600)), "blob"),
    "U10 manifest": answering(lambda rng: faults.flipped(rng.randrange(300)), "manifest"),
    "U11": answering(lambda rng: faults.wrong_length(rng.choice([-5, 7])), "blob"),
    "U14": answering(lambda rng: faults.error_response(rng.choice([500, 502, 503, 504]))),
    "U19": answering(lambda _: faults.html_page()),
    "U21": answering(lambda _: faults.ignoring_range(), "blob"),
    "S02": bucket_slow,
    "S04": bucket_cut,
}


def _both(first: Change, second: Change) -> Change:
    return lambda request, answer: second(request, first(request, answer))


@attrs.frozen
class Episode:
    """One variant, and when it was there (monotonic)."""

    kind: str
    began_at: float
    ended_at: float


class FaultInjector:
    """Brings one variant after the other while the block runs; `episodes` are those that are over."""

    def __init__(
        self,
        system: FaultySystem,
        variants: Mapping[str, UpstreamVariant],
        rng: Random,
        *,
        lasting_s: Sequence[float],
        calm_s: Sequence[float],
    ) -> None:
        self.episodes: list[Episode] = []
        self.is_on = False
        self._town = system
        self._troubles = variants
        self._dice = rng
        self._lasting_s = lasting_s
        self._calm_s = calm_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._haunt, name="injector", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _haunt(self) -> None:
        kinds: list[str] = []
        while not self._done.wait(self._dice.uniform(*self._calm_s)):
            if not kinds:  # every kind comes once before one comes again
                kinds = self._dice.sample(sorted(self._troubles), len(self._troubles))
            kind = kinds.pop()
            began_at = time.monotonic()
            with self._troubles[kind](self._town, self._dice):
                self.is_on = True
                self._done.wait(self._dice.uniform(*self._lasting_s))
                self.is_on = False
            self.episodes.append(Episode(kind, began_at, time.monotonic()))
