"""The circuit breaker of an upstream: no requests to an upstream that is down or limits the rate of requests.

The state is one small file that all workers share. No file: the breaker is closed. A file: it is open, because the
upstream is down or (with a time `until`) because it responded with status 429.

- The breaker opens on what concerns the registry as a whole. A failed connection (`Cause.NO_CONNECTION`) opens it at
  once. When one repository fails (`repository_failures.py`), the registry is suspected: the prober first checks the
  registry itself. If it responds, the breaker is closed. Until that is known, for a second at most, requests wait;
  then they fail as while the breaker is open. Invalid content does not open it.
- While it is open, requests fail with the stored error. One thread of all workers is the prober. It holds a lock on
  the probe file, which is released when its process ends. It repeats the operation that failed, every three seconds,
  one at a time. Alternately it repeats an operation that was rejected meanwhile, in case the first one concerns a
  repository that does not recover. Any response but 5xx and 429 closes the breaker.
- The time of each probe is in the state file. When it is more than five seconds ago and the lock is free, the prober
  has ended. The next caller starts a prober; a caller without an operation to probe is let through (half-open).
- After 429 the breaker is open until Retry-After has passed. Then one caller is let through (half-open), and its
  response closes or opens the breaker for all.

A file from before a reboot, with a time later than the monotonic clock, is ignored. If the file cannot be written, the
state is in the memory of this worker only.
"""

import fcntl
import json
import math
import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs
import structlog

from dockyard.errors import BadUpstream, FailureDetails, RegistryError, TooManyRequests, Unavailable, UpstreamTimeout
from dockyard.log import is_debug
from dockyard.upstream.errors import RETRY_AFTER_S, Cause, UpstreamError

INTERVAL_S = 3.0
JITTER = 0.2
PROBER_DEAD_AFTER_S = 5.0
MAX_STATE_BYTES = 16 * 1024
CONFIRM_TIMEOUT_S = 2.0
CONFIRM_WAIT_S = 1.0
CONFIRM_POLL_S = 0.01

_KINDS: dict[str, type[RegistryError]] = {
    kind.__name__: kind for kind in (BadUpstream, TooManyRequests, Unavailable, UpstreamTimeout)
}

log = structlog.get_logger()

Probe = Callable[[], object]


@attrs.frozen
class _State:
    """Down since `since`, last probed at `probed_at`; or limited until `until`. Seconds on the monotonic clock.

    `is_confirmed` is False while the registry is suspected only.
    """

    kind: str
    message: str
    since: float
    probed_at: float
    until: float | None = None
    is_confirmed: bool = True
    details: FailureDetails | None = None

    @property
    def is_down(self) -> bool:
        return self.until is None


class CircuitBreaker:
    """The breaker of one upstream. `name` is its prefix; `directory` is shared by all workers."""

    def __init__(
        self,
        directory: Path,
        name: str,
        clock: Callable[[], float] = time.monotonic,
        *,
        interval_s: float = INTERVAL_S,
        prober_dead_after_s: float = PROBER_DEAD_AFTER_S,
    ) -> None:
        stem = quote(name, safe="")
        self._name = name
        self._path = directory / f"{stem}.breaker"
        self._lock_path = directory / f"{stem}.probe"
        self._clock = clock
        self._interval_s = interval_s
        self._dead_after_s = prober_dead_after_s
        self._mutex = threading.Lock()
        self._prober: threading.Thread | None = None
        self._probe: Probe | None = None
        self._kept_back: Probe | None = None
        self._unwritten: _State | None = None
        self._undeleted: _State | None = None  # it is in the file, and does not hold any more
        self._stop = threading.Event()

    def check(self, probe: Probe | None = None, *, may_wait: bool = True) -> None:
        """Raise the stored error while the breaker is open. `probe` repeats the operation of the caller.

        While the registry is suspected, this waits for the result of the check, unless `may_wait` is False.
        """
        state = self._read()
        if state is not None and not state.is_confirmed and may_wait:
            state = self._wait_until_confirmed(state)
        if state is None:
            return
        now = self._clock()
        if state.is_down:
            self._kept_back = probe or self._kept_back
            if now - state.probed_at >= self._dead_after_s and self._take_over(state, now):
                return
            raise self._remembered(state, RETRY_AFTER_S)
        assert state.until is not None  # noqa: S101  for mypy: it is limited
        if now >= state.until and self._take_over(state, now):
            return
        raise self._remembered(state, max(1, math.ceil(state.until - now)))

    @property
    def is_open(self) -> bool:
        """Whether requests are rejected: the upstream is down, or limits the rate of requests."""
        state = self._read()
        return state is not None and state.is_confirmed

    def record_success(self) -> None:
        """The upstream responded: close the breaker."""
        self._unwritten = self._probe = self._kept_back = None
        if self._path.exists():
            was_open = self.is_open
            state = self._read()
            try:
                self._path.unlink(missing_ok=True)
            except OSError:  # a read-only file system
                self._undeleted = state or self._undeleted
            if was_open:
                log.info("upstream available again", upstream=self._name)

    def record_failure(self, fault: UpstreamError, probe: Probe) -> None:
        """The upstream is down, or limits the rate of requests; `probe` repeats what failed."""
        now = self._clock()
        if fault.cause is Cause.RATE_LIMITED:
            until = now + (fault.error.retry_after_s or RETRY_AFTER_S)
            if is_debug():
                fields = fault.error.log_fields() | {"seconds": round(until - now, 1)}
                log.debug("circuit breaker open: rate limit", upstream=self._name, **fields)
            self._write(_State("TooManyRequests", fault.error.message, now, now, until, details=fault.error.details))
            return
        before = self._read()
        was_down = before is not None and before.is_down
        since = before.since if before is not None and was_down else now
        if not self.is_open or not was_down:
            self._log_unavailable(fault.error.message, fault.error.details)
        self._write(_State(type(fault.error).__name__, fault.error.message, since, now, details=fault.error.details))
        self._probe = probe
        self._start_prober()

    def suspect(self, fault: UpstreamError, probe: Probe, check: Callable[[float], object]) -> None:
        """A repository fails, perhaps because the registry is down: `check(deadline)` tells. `probe` as above."""
        if self._read() is None:
            now = self._clock()
            self._probe = probe
            if is_debug():
                fields = fault.error.log_fields()
                log.debug("circuit breaker: a repository fails, checking the registry", upstream=self._name, **fields)
            suspected = _State(
                *(type(fault.error).__name__, fault.error.message, now, now),
                is_confirmed=False,
                details=fault.error.details,
            )
            self._start_prober(suspected=suspected, check=check)

    def close(self) -> None:
        """Stop probing; another worker continues."""
        self._stop.set()

    # Probing

    def _take_over(self, state: _State, now: float) -> bool:
        """If there is no prober, start one or let this caller through. False: reject the caller."""
        lock = self._try_lock()
        if lock is None:
            return False
        try:
            if self._read() != state:
                return False  # another caller took over
            until = None if state.is_down else now + self._dead_after_s
            self._write(attrs.evolve(state, probed_at=now, until=until))
        finally:
            os.close(lock)
        if state.is_down and (self._probe or self._kept_back) is not None:
            self._start_prober(at_once=True)
            return False
        if is_debug():
            log.debug("circuit breaker half-open: one request is let through", upstream=self._name)
        return True

    def _wait_until_confirmed(self, state: _State) -> _State | None:
        wait_s = min(state.since + CONFIRM_WAIT_S - self._clock(), CONFIRM_WAIT_S)
        deadline = time.monotonic() + wait_s
        found: _State | None = state
        while found is not None and not found.is_confirmed and time.monotonic() < deadline:
            if self._stop.wait(CONFIRM_POLL_S):
                break
            found = self._read()
        return found

    def _start_prober(
        self,
        *,
        at_once: bool = False,
        suspected: _State | None = None,
        check: Callable[[float], object] | None = None,
    ) -> None:
        with self._mutex:
            if (self._prober is not None and self._prober.is_alive()) or self._stop.is_set():
                return
            lock = self._try_lock()
            if lock is None:
                return
            if suspected is not None:
                self._write(suspected)
            self._prober = threading.Thread(
                target=self._probe_on,
                args=(lock, check),
                kwargs={"at_once": at_once},
                name="probe",
                daemon=True,
            )
            self._prober.start()

    def _probe_on(self, lock: int, check: Callable[[float], object] | None, *, at_once: bool) -> None:
        """Probe until the breaker is closed, first by `check` if there is one. Holds the lock meanwhile."""
        try:
            begun = self._clock()
            if check is not None and self._is_up(check):
                return
            turn = 0
            while True:
                pause = self._interval_s * random.uniform(1 - JITTER, 1 + JITTER)
                if self._stop.wait(0.0 if at_once else max(0.0, begun + pause - self._clock())):
                    return
                at_once = False
                begun = self._clock()
                state = self._read()
                if state is None or not state.is_down:
                    return
                self._write(attrs.evolve(state, probed_at=begun))
                if is_debug():
                    log.debug("circuit breaker half-open: probing", upstream=self._name, reason=state.message)
                probes = [probe for probe in (self._probe, self._kept_back) if probe is not None]
                if not probes or self._try(probes[turn % len(probes)]):
                    return
                turn += 1
        finally:
            with self._mutex:
                self._prober = None
                os.close(lock)

    def _is_up(self, check: Callable[[float], object]) -> bool:
        """Check a registry that is suspected; if it is down, the breaker stays open."""
        deadline = time.monotonic() + CONFIRM_TIMEOUT_S
        if self._try(lambda: check(deadline)):
            return True
        state = self._read()
        if state is None:
            return True  # another request got a response meanwhile
        if not state.is_confirmed:
            self._log_unavailable(state.message, state.details)
            self._write(attrs.evolve(state, probed_at=self._clock(), is_confirmed=True))
        return False

    def _log_unavailable(self, reason: str, details: FailureDetails | None) -> None:
        fields = RegistryError(reason, details=details).log_fields()
        log.warning("upstream unavailable: serving cached content, probing", upstream=self._name, **fields)

    def _try(self, probe: Probe) -> bool:
        """Probe once; True if no more probes are needed."""
        try:
            probe()
        except UpstreamError as fault:
            if fault.cause in (Cause.NO_CONNECTION, Cause.NO_RESPONSE, Cause.SERVER_ERROR):
                return False
            if fault.cause is Cause.RATE_LIMITED:
                self.record_failure(fault, probe)
                return True
        except RegistryError:
            pass  # not found or denied: the registry responded
        except Exception:
            log.exception("a probe failed", upstream=self._name)
            return False
        self.record_success()
        return True

    def _try_lock(self) -> int | None:
        try:
            descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:  # the disk is full or read-only: each worker probes, as each has its own state
            return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:  # the file system has no locks
            pass
        return descriptor

    # The file

    def _remembered(self, state: _State, retry_after_s: int) -> RegistryError:
        kind = _KINDS.get(state.kind, Unavailable)
        return kind(state.message, retry_after_s=retry_after_s, remembered=True, details=state.details)

    def _read(self) -> _State | None:
        try:
            with self._path.open("rb") as file:
                fields: dict[str, Any] = json.loads(file.read(MAX_STATE_BYTES))
            details = fields.pop("details", None)
            state = _State(**fields, details=FailureDetails(**details) if details else None)
        except FileNotFoundError:
            return self._unwritten
        except (OSError, ValueError, TypeError):
            return self._unwritten
        if state == self._undeleted:
            return self._unwritten
        return state if state.since <= self._clock() else None

    def _write(self, state: _State) -> None:
        temporary = self._path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        try:
            temporary.write_text(json.dumps(attrs.asdict(state)))
            temporary.replace(self._path)
        except OSError as exc:
            if self._unwritten is None:
                log.warning(
                    "cannot write the circuit breaker state: each worker uses its own",
                    upstream=self._name,
                    reason=exc.strerror,
                )
            self._unwritten = state
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
