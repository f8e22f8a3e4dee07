"""What is known to be down is not asked again and again.

Theory of operation. The state of an upstream is one small file for all workers: none (closed), `down` or `limited`.

- A fault of silence opens the breaker at once, 5xx after five in a row (counted in each worker), bad content never.
- While it is down, callers get the remembered error. One thread of all workers is the prober: it holds a lock on the
  probe file (which its death frees) and repeats the operation that failed, started every three seconds and never two
  at a time. In turn with it, it repeats an operation that was kept back meanwhile: one repository that makes the
  registry hang must not keep the others down. Any answer closes the breaker.
- Each probe is noted in the file. When the last one is older than five seconds and the lock is free, the prober is
  dead: the next caller takes its place, or is let through if it has nothing to probe with.
- 429 closes the door until its Retry-After; then one caller is let through and the others wait for what it learns.

A file from before a reboot (the monotonic clock was ahead of us) is ignored. If the file cannot be written, this
worker goes by its own memory.
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

from dockyard.errors import BadUpstream, RegistryError, TooManyRequests, Unavailable, UpstreamTimeout
from dockyard.upstream.errors import RETRY_AFTER_S, Cause, UpstreamError

INTERVAL_S = 3.0
JITTER = 0.2
PROBER_DEAD_AFTER_S = 5.0
MAX_SERVER_ERRORS = 5
MAX_STATE_BYTES = 4096

_KINDS: dict[str, type[RegistryError]] = {
    kind.__name__: kind for kind in (BadUpstream, TooManyRequests, Unavailable, UpstreamTimeout)
}

log = structlog.get_logger()

Probe = Callable[[], object]


@attrs.frozen
class _State:
    """Down since `since`, last probed at `probed_at`; or limited until `until`. Seconds on the monotonic clock."""

    kind: str
    message: str
    since: float
    probed_at: float
    until: float | None = None

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
        self._server_faults = 0
        self._unwritten: _State | None = None
        self._stop = threading.Event()

    def check(self, probe: Probe | None = None) -> None:
        """Raise the remembered error while the upstream is down or limits us. `probe` repeats what the caller wants."""
        state = self._read()
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
        """Whether the upstream is known to be down, or to limit us."""
        return self._read() is not None

    def record_success(self) -> None:
        """The upstream answered."""
        self._server_faults = 0
        self._unwritten = self._probe = self._kept_back = None
        if self._path.exists():
            with suppress(OSError):
                self._path.unlink()
                log.info("an upstream is back", upstream=self._name)

    def record_failure(self, fault: UpstreamError, probe: Probe) -> None:
        """The upstream gave no usable answer; `probe` does the same again."""
        now = self._clock()
        match fault.cause:
            case Cause.NOT_COUNTED:
                return
            case Cause.RATE_LIMITED:
                until = now + (fault.error.retry_after_s or RETRY_AFTER_S)
                self._write(_State("TooManyRequests", fault.error.message, now, now, until))
                return
        before = self._read()
        is_down = before is not None and before.is_down
        if fault.cause is Cause.SERVER_ERROR:
            self._server_faults += 1
            if self._server_faults < MAX_SERVER_ERRORS and not is_down:
                return
        since = before.since if before is not None and is_down else now
        if since == now:
            log.warning("an upstream is down", upstream=self._name, reason=fault.error.message)
        self._write(_State(type(fault.error).__name__, fault.error.message, since, now))
        self._probe = probe
        self._start_prober()

    def close(self) -> None:
        """Stop probing; another worker goes on."""
        self._stop.set()

    # Probing

    def _take_over(self, state: _State, now: float) -> bool:
        """Nobody probes: begin to, or let this one caller through. False: keep it back."""
        lock = self._try_lock()
        if lock is None:
            return False
        try:
            if self._read() != state:
                return False  # another caller was faster
            until = None if state.is_down else now + self._dead_after_s
            self._write(attrs.evolve(state, probed_at=now, until=until))
        finally:
            os.close(lock)
        if state.is_down and (self._probe or self._kept_back) is not None:
            self._start_prober(at_once=True)
            return False
        return True

    def _start_prober(self, *, at_once: bool = False) -> None:
        with self._mutex:
            if (self._prober is not None and self._prober.is_alive()) or self._stop.is_set():
                return
            lock = self._try_lock()
            if lock is None:
                return
            self._prober = threading.Thread(
                target=self._probe_on, args=(lock,), kwargs={"at_once": at_once}, name="probe", daemon=True
            )
            self._prober.start()

    def _probe_on(self, lock: int, *, at_once: bool) -> None:
        """Probe until the breaker is closed. Holds the lock all the while."""
        try:
            begun = self._clock()
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
                probes = [probe for probe in (self._probe, self._kept_back) if probe is not None]
                if not probes or self._try(probes[turn % len(probes)]):
                    return
                turn += 1
        finally:
            with self._mutex:
                self._prober = None
                os.close(lock)

    def _try(self, probe: Probe) -> bool:
        """One probe; True when there is nothing more to do."""
        try:
            probe()
        except UpstreamError as fault:
            if fault.cause in (Cause.NO_RESPONSE, Cause.SERVER_ERROR):
                return False
            if fault.cause is Cause.RATE_LIMITED:
                self.record_failure(fault, probe)
                return True
        except RegistryError:
            pass  # no such thing, denied: an answer
        except Exception:
            log.exception("a probe failed", upstream=self._name)
            return False
        self.record_success()
        return True

    def _try_lock(self) -> int | None:
        try:
            descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return descriptor

    # The file

    def _remembered(self, state: _State, retry_after_s: int) -> RegistryError:
        kind = _KINDS.get(state.kind, Unavailable)
        return kind(state.message, retry_after_s=retry_after_s, remembered=True)

    def _read(self) -> _State | None:
        try:
            with self._path.open("rb") as file:
                fields: dict[str, Any] = json.loads(file.read(MAX_STATE_BYTES))
            state = _State(**fields)
        except FileNotFoundError:
            return self._unwritten
        except (OSError, ValueError, TypeError):
            return self._unwritten
        return state if state.since <= self._clock() else None

    def _write(self, state: _State) -> None:
        temporary = self._path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        try:
            temporary.write_text(json.dumps(attrs.asdict(state)))
            temporary.replace(self._path)
        except OSError as exc:
            self._unwritten = state
            log.warning("the state of an upstream cannot be written", upstream=self._name, reason=exc.strerror)
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
