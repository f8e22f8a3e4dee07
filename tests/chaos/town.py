"""A Dockyard with everything that can fail around it, and the troubles that a nemesis draws from.

    clients --- Dockyard (real workers, a clock of its own) --- fake registry
                            `--- toxiproxy --- MinIO

A trouble is a context: it begins, lasts as long as the block, and is over. All of them are drawn by a seed.
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

from tests.chaos.audit import audit_directory
from tests.chaos.clock import Clock
from tests.s3.service.bucket_view import BucketView
from tests.support import faults
from tests.support.deployment import Deployment, eventually
from tests.support.fake_registry import Change, FakeRegistry
from tests.support.toxiproxy import TcpProxy

HOUR_S = 3600
SETTLE_S = 20.0
Trouble = Callable[["Town", Random], AbstractContextManager[None]]


@attrs.frozen(eq=False)
class Town:
    """All of it."""

    fake_registry: FakeRegistry
    deployment: Deployment
    place: BucketView
    bucket: TcpProxy
    clock: Clock
    workers: int

    def worker(self, dice: Random) -> int | None:
        """One of the workers; None when there is none at the moment."""
        pids = self.deployment.dockyard.worker_pids()
        return dice.choice(pids) if pids else None

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
def refused(town: Town, _: Random) -> Iterator[None]:
    """U01: nobody listens at the upstream."""
    town.fake_registry.listener.close()
    try:
        yield
    finally:
        town.fake_registry.listener.open()


@contextlib.contextmanager
def silent(town: Town, _: Random) -> Iterator[None]:
    """U05: the upstream takes connections and says nothing; what was asked is answered when it is over."""
    over = threading.Event()
    rule = town.fake_registry.on(None, faults.silent(over))
    try:
        yield
    finally:
        town.fake_registry.remove_rules(rule)
        over.set()


@contextlib.contextmanager
def stalled(town: Town, _: Random) -> Iterator[None]:
    """U07: bodies stop in the middle."""
    over = threading.Event()
    rule = town.fake_registry.on("blob", faults.stalled(0.5, over))
    try:
        yield
    finally:
        town.fake_registry.remove_rules(rule)
        over.set()


def answering(change: Callable[[Random], Change], kind: str | None = None) -> Trouble:
    """The upstream answers wrongly, in a way that is drawn."""

    @contextlib.contextmanager
    def trouble(town: Town, dice: Random) -> Iterator[None]:
        rule = town.fake_registry.on(kind, change(dice))
        try:
            yield
        finally:
            town.fake_registry.remove_rules(rule)

    return trouble


@contextlib.contextmanager
def killed(town: Town, dice: Random) -> Iterator[None]:
    """P01, P02: kill -9 of a worker."""
    send(town.worker(dice), signal.SIGKILL)
    yield


@contextlib.contextmanager
def frozen(town: Town, dice: Random) -> Iterator[None]:
    """P04: SIGSTOP of a worker, and SIGCONT if it has not been replaced meanwhile."""
    pid = town.worker(dice)
    send(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if pid in town.deployment.dockyard.worker_pids():
            send(pid, signal.SIGCONT)


@contextlib.contextmanager
def clock_off(town: Town, dice: Random) -> Iterator[None]:
    """P08: the wall clock jumps, and back."""
    town.clock.set(dice.choice([-HOUR_S, HOUR_S, 24 * HOUR_S]))
    try:
        yield
    finally:
        town.clock.set(0)


@contextlib.contextmanager
def bucket_refused(town: Town, _: Random) -> Iterator[None]:
    """S01: nobody listens at the bucket."""
    town.bucket.refuse_connections()
    try:
        yield
    finally:
        town.bucket.restore()


@contextlib.contextmanager
def bucket_slow(town: Town, _: Random) -> Iterator[None]:
    """S02: every answer of the bucket takes a second more."""
    town.bucket.add_latency(1.0)
    try:
        yield
    finally:
        town.bucket.restore()


@contextlib.contextmanager
def bucket_cut(town: Town, dice: Random) -> Iterator[None]:
    """S04, S12: connections of the bucket break in the middle."""
    town.bucket.cut(dice.randrange(200, 60_000), by_reset=dice.random() < 0.5)
    try:
        yield
    finally:
        town.bucket.restore()


OUTAGES: Mapping[str, Trouble] = {
    "U01": refused,
    "U05": silent,
    "U13": answering(lambda _: faults.error_response(429, "TOOMANYREQUESTS", "1")),
}
HISTORY: Mapping[str, Trouble] = {**OUTAGES, "P01": killed, "P04": frozen, "P08": clock_off, "S01": bucket_refused}
ALL: Mapping[str, Trouble] = {
    **HISTORY,
    "U06": answering(lambda _: faults.slow(512 * 1024), "blob"),
    "U07": stalled,
    "U08": answering(lambda dice: faults.cut(dice.random(), "rst")),
    "U09": answering(lambda dice: faults.cut(dice.random(), "fin")),
    "U09 close": answering(lambda dice: _both(faults.close_delimited(), faults.short(dice.randrange(1, 100)))),
    "U10": answering(lambda dice: faults.flipped(dice.randrange(600)), "blob"),
    "U10 manifest": answering(lambda dice: faults.flipped(dice.randrange(300)), "manifest"),
    "U11": answering(lambda dice: faults.wrong_length(dice.choice([-5, 7])), "blob"),
    "U14": answering(lambda dice: faults.error_response(dice.choice([500, 502, 503, 504]))),
    "U19": answering(lambda _: faults.html_page()),
    "U21": answering(lambda _: faults.ignoring_range(), "blob"),
    "S02": bucket_slow,
    "S04": bucket_cut,
}


def _both(first: Change, second: Change) -> Change:
    return lambda request, answer: second(request, first(request, answer))


@attrs.frozen
class Episode:
    """One trouble, and when it was there (monotonic)."""

    kind: str
    began_at: float
    ended_at: float


class Nemesis:
    """Brings one trouble after the other while the block runs; `episodes` are those that are over."""

    def __init__(
        self,
        town: Town,
        troubles: Mapping[str, Trouble],
        dice: Random,
        *,
        lasting_s: Sequence[float],
        calm_s: Sequence[float],
    ) -> None:
        self.episodes: list[Episode] = []
        self.is_on = False
        self._town = town
        self._troubles = troubles
        self._dice = dice
        self._lasting_s = lasting_s
        self._calm_s = calm_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._haunt, name="nemesis", daemon=True)

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
