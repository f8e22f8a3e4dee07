"""The circuit breaker: when it opens and closes, and one prober for all workers."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dockyard.errors import BadUpstream, ManifestUnknown, RegistryError, TooManyRequests, Unavailable, UpstreamTimeout
from dockyard.upstream import errors
from dockyard.upstream.circuit_breaker import CONFIRM_TIMEOUT_S, CircuitBreaker
from dockyard.upstream.errors import UpstreamError
from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.deployment import eventually
from tests.support.upstreams import DETAILS

NAME = "docker.io/library"
NO_RESPONSE = errors.unreachable("x", "no connection", DETAILS)
TIMEOUT = errors.timed_out("x", DETAILS)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Upstream:
    """An upstream to probe: counts the probes, and raises `fault` unless it is None."""

    def __init__(self, fault: Exception | None = NO_RESPONSE) -> None:
        self.fault = fault
        self.probes = 0
        self.at_once = 0
        self.most_at_once = 0
        self.changed = threading.Condition()

    def probe(self) -> None:
        with self.changed:
            self.probes += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            self.changed.notify_all()
        try:
            if self.fault is not None:
                raise self.fault
        finally:
            with self.changed:
                self.at_once -= 1

    def wait_for(self, probes: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.probes >= probes, EVENT_TIMEOUT_S)


Make = Callable[..., CircuitBreaker]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Give what makes workers' breakers over one directory; by default they do not probe by themselves."""
    made: list[CircuitBreaker] = []

    def make(
        clock: Callable[[], float] = time.monotonic, interval_s: float = 1000.0, dead_s: float = 5.0
    ) -> CircuitBreaker:
        made.append(CircuitBreaker(tmp_path, NAME, clock, interval_s=interval_s, prober_dead_after_s=dead_s))
        return made[-1]

    yield make
    for breaker in made:
        breaker.close()


def is_open(breaker: CircuitBreaker) -> bool:
    """Whether the breaker rejects a caller."""
    try:
        breaker.check()
    except RegistryError as error:
        return error.remembered
    return False


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll until another thread has made the condition true."""
    deadline = time.monotonic() + EVENT_TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_closed_breaker_has_no_file(make: Make, tmp_path: Path) -> None:
    """Neither a check nor a success writes one."""
    breaker = make()
    breaker.check()
    breaker.record_success()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (errors.unreachable("x", "no connection", DETAILS), Unavailable),
        (errors.timed_out("x", DETAILS), UpstreamTimeout),
        (errors.tls_failed("x", "the certificate has expired", DETAILS), BadUpstream),
    ],
)
def test_one_failure_without_a_response_opens_the_breaker_of_all_workers(
    make: Make, fault: UpstreamError, kind: type[RegistryError]
) -> None:
    """Callers get the same error, marked as remembered."""
    one, other = make(), make()
    one.record_failure(fault, Upstream().probe)
    for breaker in (one, other):
        with pytest.raises(kind) as caught:
            breaker.check()
        assert type(caught.value) is kind
        assert caught.value.message == fault.error.message
        assert caught.value.remembered
        assert caught.value.retry_after_s == 3


def test_a_response_closes_the_breaker_of_all_workers(make: Make) -> None:
    """In any worker."""
    one, other = make(), make()
    one.record_failure(NO_RESPONSE, Upstream().probe)
    other.record_success()
    assert not is_open(one)


class Check:
    """The check of a registry that is suspected: held back until `gate` is set, then raises `fault`."""

    def __init__(self, fault: Exception | None) -> None:
        self.fault = fault
        self.calls = 0
        self.gate = threading.Event()

    def __call__(self, deadline: float) -> None:
        self.calls += 1
        assert 0 < deadline - time.monotonic() <= CONFIRM_TIMEOUT_S
        assert self.gate.wait(EVENT_TIMEOUT_S)
        if self.fault:
            raise self.fault


def waiting_callers(breakers: list[CircuitBreaker]) -> tuple[list[threading.Thread], list[RegistryError | None]]:
    """Callers that wait; what they get is appended to the list."""
    found: list[RegistryError | None] = []

    def call(breaker: CircuitBreaker) -> None:
        try:
            breaker.check()
        except RegistryError as error:
            found.append(error)
        else:
            found.append(None)

    threads = [threading.Thread(target=call, args=(breaker,)) for breaker in breakers]
    for thread in threads:
        thread.start()
    return threads, found


@pytest.mark.parametrize(
    "answer", [None, ManifestUnknown("not found"), errors.bad_response("x", "sent a page", DETAILS)]
)
def test_a_suspected_registry_that_responds_is_up(make: Make, answer: Exception | None) -> None:
    """Callers of all workers wait for the check, and are let through."""
    one, other, check = make(), make(), Check(answer)
    one.suspect(TIMEOUT, Upstream().probe, check)
    threads, found = waiting_callers([one, other])
    threads[0].join(0.05)
    assert found == []
    assert not one.is_open
    check.gate.set()
    for thread in threads:
        thread.join(EVENT_TIMEOUT_S)
    assert (found, check.calls) == ([None, None], 1)
    assert not is_open(other)


@pytest.mark.parametrize("fault", [NO_RESPONSE, errors.server_error("x", 500, DETAILS), errors.timed_out("x", DETAILS)])
def test_a_suspected_registry_that_does_not_respond_is_down(make: Make, fault: UpstreamError) -> None:
    """For all workers, with the first error; it is probed by what failed first."""
    one, other, check, upstream = make(interval_s=0.02), make(), Check(fault), Upstream()
    one.suspect(TIMEOUT, upstream.probe, check)
    threads, found = waiting_callers([one, other])
    check.gate.set()
    for thread in threads:
        thread.join(EVENT_TIMEOUT_S)
    assert [type(error) for error in found] == [UpstreamTimeout] * 2
    assert all(error and error.remembered for error in found)
    wait_until(lambda: one.is_open)
    upstream.wait_for(2)
    upstream.fault = None
    wait_until(lambda: not is_open(other))


def test_nobody_waits_for_a_check_for_long(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a second callers are rejected; those of the failing repository at once."""
    monkeypatch.setattr("dockyard.upstream.circuit_breaker.CONFIRM_WAIT_S", 0.1)
    breaker, check = make(), Check(None)
    breaker.suspect(TIMEOUT, Upstream().probe, check)
    with pytest.raises(UpstreamTimeout):
        breaker.check(may_wait=False)
    with pytest.raises(UpstreamTimeout):
        breaker.check()
    check.gate.set()
    wait_until(lambda: not is_open(breaker))


def test_a_response_to_another_request_ends_the_suspicion(make: Make) -> None:
    """Whatever the check finds later."""
    one, other, check = make(interval_s=0.02), make(), Check(NO_RESPONSE)
    one.suspect(TIMEOUT, Upstream().probe, check)
    other.record_success()
    other.check()
    check.gate.set()
    wait_until(lambda: one._prober is None)
    assert not is_open(one)


def test_a_registry_is_checked_once_at_a_time(make: Make) -> None:
    """Also when repositories fail in several workers; and not at all while the breaker is open."""
    one, other, check = make(), make(), Check(None)
    for breaker in (one, other, one):
        breaker.suspect(TIMEOUT, Upstream().probe, check)
    check.gate.set()
    wait_until(lambda: one._prober is None)
    assert check.calls == 1
    one.record_failure(NO_RESPONSE, Upstream().probe)
    other.suspect(TIMEOUT, Upstream().probe, check)
    assert check.calls == 1


def test_a_failed_connection_during_a_check_is_an_outage(make: Make) -> None:
    """The check still runs; its failure keeps the breaker open."""
    breaker, check = make(), Check(NO_RESPONSE)
    breaker.suspect(TIMEOUT, Upstream().probe, check)
    breaker.record_failure(NO_RESPONSE, Upstream().probe)
    assert breaker.is_open
    with pytest.raises(Unavailable):
        breaker.check()
    check.gate.set()


def test_a_check_that_is_rate_limited_is_a_rate_limit(make: Make) -> None:
    """The registry responds, and wants no requests."""
    breaker, check = make(), Check(errors.rate_limited("x", 60, DETAILS))
    breaker.suspect(TIMEOUT, Upstream().probe, check)
    check.gate.set()
    wait_until(lambda: breaker.is_open)
    with pytest.raises(TooManyRequests):
        breaker.check()


def test_two_upstreams_do_not_share_a_state(tmp_path: Path) -> None:
    """A prefix with `..` writes no file outside of the directory."""
    breakers = [CircuitBreaker(tmp_path, name) for name in ("a/b", "a", "../a")]
    breakers[0].record_failure(errors.rate_limited("x", 60, DETAILS), Upstream().probe)
    assert [is_open(breaker) for breaker in breakers] == [True, False, False]
    breakers[2].record_failure(errors.rate_limited("x", 60, DETAILS), Upstream().probe)
    assert all(path.parent == tmp_path for path in tmp_path.rglob("*"))


def test_the_prober_closes_the_breaker_when_the_upstream_is_back(make: Make) -> None:
    """It repeats the failed operation until it succeeds."""
    breaker, upstream = make(interval_s=0.02), Upstream()
    breaker.record_failure(NO_RESPONSE, upstream.probe)
    upstream.wait_for(3)
    assert is_open(breaker)
    upstream.fault = None
    wait_until(lambda: not is_open(breaker))


@pytest.mark.parametrize(
    "error", [ManifestUnknown("not found"), errors.bad_response("x", "sent invalid content", DETAILS), None]
)
def test_any_response_to_a_probe_closes_the_breaker(make: Make, error: Exception | None) -> None:
    """Also 404 and invalid content."""
    breaker, upstream = make(interval_s=0.02), Upstream(error)
    breaker.record_failure(NO_RESPONSE, upstream.probe)
    wait_until(lambda: not is_open(breaker))
    assert upstream.probes == 1


def test_a_probe_that_is_rate_limited_keeps_the_breaker_open(make: Make) -> None:
    """The stored error becomes TooManyRequests."""
    breaker, upstream = make(interval_s=0.02), Upstream(errors.rate_limited("x", 60, DETAILS))
    breaker.record_failure(NO_RESPONSE, upstream.probe)
    upstream.wait_for(1)

    def is_limited() -> bool:
        with pytest.raises(RegistryError) as caught:
            breaker.check()
        return isinstance(caught.value, TooManyRequests)

    wait_until(is_limited)


def test_all_workers_together_have_one_prober(make: Make) -> None:
    """After several failures in several workers; only one probe runs at a time."""
    upstream = Upstream()
    breakers = [make(interval_s=0.02) for _ in range(5)]
    for breaker in breakers:
        breaker.record_failure(NO_RESPONSE, upstream.probe)
        breaker.record_failure(NO_RESPONSE, upstream.probe)
    upstream.wait_for(6)
    assert upstream.most_at_once == 1
    assert len([thread for thread in threading.enumerate() if thread.name == "probe"]) == 1


def test_a_rejected_operation_is_probed_too(make: Make) -> None:
    """One repository that hangs does not keep the breaker open."""
    breaker, poison, other = make(interval_s=0.02), Upstream(), Upstream(None)
    breaker.record_failure(NO_RESPONSE, poison.probe)
    poison.wait_for(2)
    with pytest.raises(Unavailable):
        breaker.check(other.probe)
    wait_until(lambda: not is_open(breaker))
    assert other.probes == 1


def test_a_prober_that_died_is_replaced(make: Make) -> None:
    """By the next worker with an operation to probe."""
    clock, upstream = Clock(), Upstream()
    dying, heir = make(clock), make(clock, interval_s=0.02)
    dying.record_failure(NO_RESPONSE, Upstream().probe)
    with pytest.raises(Unavailable):
        heir.check(upstream.probe)
    dying.close()
    wait_until(lambda: dying._prober is None)
    clock.now += 6
    with pytest.raises(Unavailable):
        heir.check(upstream.probe)
    upstream.wait_for(1)
    upstream.fault = None
    wait_until(lambda: not is_open(heir))


def test_without_a_prober_one_caller_is_let_through(make: Make) -> None:
    """Without an operation to probe, one caller per five seconds (half-open)."""
    clock = Clock()
    dying, heir = make(clock), make(clock)
    dying.record_failure(NO_RESPONSE, Upstream().probe)
    dying.close()
    wait_until(lambda: dying._prober is None)
    assert is_open(heir)
    clock.now += 6
    assert [is_open(heir) for _ in range(4)] == [False, True, True, True]
    clock.now += 6
    assert [is_open(heir) for _ in range(2)] == [False, True]


def test_callers_are_rejected_while_a_long_probe_runs(make: Make) -> None:
    """A probe may take longer than five seconds."""
    clock = Clock()
    breaker, other = make(clock), make(clock)
    breaker.record_failure(NO_RESPONSE, Upstream().probe)
    clock.now += 100
    assert is_open(other)


def test_a_rate_limit_lasts_until_retry_after(make: Make) -> None:
    """For all workers, with the remaining seconds as Retry-After."""
    clock = Clock()
    one, other = make(clock), make(clock)
    one.record_failure(errors.rate_limited("x", 30, DETAILS), Upstream().probe)
    clock.now += 10.5
    with pytest.raises(TooManyRequests) as caught:
        other.check()
    assert (caught.value.retry_after_s, caught.value.remembered) == (20, True)


def test_after_a_rate_limit_one_caller_is_let_through(make: Make) -> None:
    """The breaker is half-open: the response to this caller closes it for the others."""
    clock = Clock()
    one, other = make(clock), make(clock)
    one.record_failure(errors.rate_limited("x", 30, DETAILS), Upstream().probe)
    clock.now += 31
    assert [is_open(breaker) for breaker in (other, one, other)] == [False, True, True]
    other.record_success()
    assert not is_open(one)


def test_an_outage_during_a_rate_limit_is_an_outage(make: Make) -> None:
    """The newest state applies."""
    breaker = make()
    breaker.record_failure(errors.rate_limited("x", 30, DETAILS), Upstream().probe)
    breaker.record_failure(NO_RESPONSE, Upstream().probe)
    with pytest.raises(Unavailable):
        breaker.check()


def test_a_state_from_before_a_reboot_is_ignored(make: Make) -> None:
    """The monotonic clock starts again at a reboot."""
    clock = Clock()
    make(clock).record_failure(NO_RESPONSE, Upstream().probe)
    clock.now = 10.0
    assert not is_open(make(clock))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"kind": 5}', b"\xff" * 10_000])
def test_an_invalid_state_file_is_ignored(make: Make, tmp_path: Path, content: bytes) -> None:
    """The breaker is closed then."""
    breaker = make()
    breaker.record_failure(errors.rate_limited("x", 60, DETAILS), Upstream().probe)
    (file,) = tmp_path.glob("*.breaker")
    file.write_bytes(content)
    assert not is_open(breaker)


def test_without_a_writable_directory_the_state_is_in_memory(tmp_path: Path) -> None:
    """On a full disk the breaker of this worker still opens and closes."""
    breaker = CircuitBreaker(tmp_path / "missing", NAME, interval_s=1000)
    breaker.record_failure(errors.rate_limited("x", 60, DETAILS), Upstream().probe)
    assert is_open(breaker)
    breaker.record_success()
    assert not is_open(breaker)


def test_without_a_writable_directory_the_upstream_is_probed(tmp_path: Path) -> None:
    """The breaker of this worker closes when the upstream responds again."""
    breaker = CircuitBreaker(tmp_path / "missing", NAME, interval_s=0.01)
    upstream = Upstream(None)
    breaker.record_failure(NO_RESPONSE, upstream.probe)
    upstream.wait_for(1)
    eventually(lambda: not breaker.is_open, "the breaker is closed")
    breaker.close()


def test_a_state_that_cannot_be_deleted_is_ignored(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file system became read-only while the upstream was away: it is used when it is back, and failures count."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    breaker = make()
    breaker.record_failure(errors.rate_limited("x", 60, DETAILS), Upstream().probe)
    for name in ("unlink", "write_text"):
        monkeypatch.setattr(Path, name, fail)
    assert is_open(breaker)
    breaker.record_success()
    assert not is_open(breaker)
    breaker.record_failure(errors.rate_limited("x", 60, DETAILS), Upstream().probe)
    assert is_open(breaker)
    breaker.record_success()
    assert not is_open(breaker)


def test_the_lock_is_not_inherited(make: Make, tmp_path: Path) -> None:
    """A credential helper that outlives its worker does not hold the lock of the prober."""
    breaker = make()
    breaker.record_failure(NO_RESPONSE, Upstream().probe)
    (file,) = tmp_path.glob("*.probe")
    ours = [fd for fd in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{fd}") == str(file)]
    assert len(ours) == 1
    assert not os.get_inheritable(int(ours[0]))
