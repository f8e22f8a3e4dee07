"""The breaker: what is known to be down is asked by one prober of all workers."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dockyard.errors import BadUpstream, ManifestUnknown, RegistryError, TooManyRequests, Unavailable, UpstreamTimeout
from dockyard.upstream import errors
from dockyard.upstream.circuit_breaker import CircuitBreaker
from dockyard.upstream.errors import UpstreamError

NAME = "docker.io/library"
NO_RESPONSE = errors.unreachable("x", "no connection")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Upstream:
    """Something to probe: counts, and fails with `fault` while there is one."""

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
            assert self.changed.wait_for(lambda: self.probes >= probes, 10)


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
    """Does it keep callers back?"""
    try:
        breaker.check()
    except RegistryError as error:
        return error.remembered
    return False


def wait_until(condition: Callable[[], bool]) -> None:
    """For what another thread does."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_healthy_upstream_leaves_no_file(make: Make, tmp_path: Path) -> None:
    """There is nothing to read."""
    breaker = make()
    breaker.check()
    breaker.record_success()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (errors.unreachable("x", "no connection"), Unavailable),
        (errors.timed_out("x"), UpstreamTimeout),
        (errors.tls_failed("x"), BadUpstream),
    ],
)
def test_silence_opens_at_once_and_for_all_workers(make: Make, fault: UpstreamError, kind: type[RegistryError]) -> None:
    """With the error that was seen, marked as remembered."""
    one, other = make(), make()
    one.record_failure(fault, Upstream().probe)
    for breaker in (one, other):
        with pytest.raises(kind) as caught:
            breaker.check()
        assert type(caught.value) is kind
        assert caught.value.message == fault.error.message
        assert caught.value.remembered
        assert caught.value.retry_after_s == 3


def test_an_answer_closes_for_all_workers(make: Make) -> None:
    """In any worker."""
    one, other = make(), make()
    one.record_failure(NO_RESPONSE, Upstream().probe)
    other.record_success()
    assert not is_open(one)


def test_server_errors_open_after_five_in_a_row(make: Make) -> None:
    """An answer in between begins anew."""
    breaker, fault = make(), errors.server_error("x", 500)
    for _ in range(4):
        breaker.record_failure(fault, Upstream().probe)
    breaker.record_success()
    for _ in range(4):
        breaker.record_failure(fault, Upstream().probe)
    assert not is_open(breaker)
    breaker.record_failure(fault, Upstream().probe)
    assert is_open(breaker)


def test_bad_content_never_opens(make: Make) -> None:
    """The upstream is up."""
    breaker = make()
    for _ in range(20):
        breaker.record_failure(errors.bad_response("x", "sent nonsense"), Upstream().probe)
    assert not is_open(breaker)


def test_two_upstreams_do_not_share_a_state(tmp_path: Path) -> None:
    """Nor does a prefix leave the directory."""
    breakers = [CircuitBreaker(tmp_path, name) for name in ("a/b", "a", "../a")]
    breakers[0].record_failure(errors.rate_limited("x", 60), Upstream().probe)
    assert [is_open(breaker) for breaker in breakers] == [True, False, False]
    breakers[2].record_failure(errors.rate_limited("x", 60), Upstream().probe)
    assert all(path.parent == tmp_path for path in tmp_path.rglob("*"))


def test_the_prober_closes_when_the_upstream_is_back(make: Make) -> None:
    """It repeats what failed until that works."""
    breaker, upstream = make(interval_s=0.02), Upstream()
    breaker.record_failure(NO_RESPONSE, upstream.probe)
    upstream.wait_for(3)
    assert is_open(breaker)
    upstream.fault = None
    wait_until(lambda: not is_open(breaker))


@pytest.mark.parametrize("answer", [ManifestUnknown("no such thing"), errors.bad_response("x", "sent nonsense"), None])
def test_any_answer_to_the_prober_closes(make: Make, answer: Exception | None) -> None:
    """Not found is an answer as well."""
    breaker, upstream = make(interval_s=0.02), Upstream(answer)
    breaker.record_failure(NO_RESPONSE, upstream.probe)
    wait_until(lambda: not is_open(breaker))
    assert upstream.probes == 1


def test_a_limit_that_the_prober_meets_is_kept(make: Make) -> None:
    """Then the upstream is not down but limits us."""
    breaker, upstream = make(interval_s=0.02), Upstream(errors.rate_limited("x", 60))
    breaker.record_failure(NO_RESPONSE, upstream.probe)
    upstream.wait_for(1)

    def is_limited() -> bool:
        with pytest.raises(RegistryError) as caught:
            breaker.check()
        return isinstance(caught.value, TooManyRequests)

    wait_until(is_limited)


def test_all_workers_together_have_one_prober(make: Make) -> None:
    """However many fail at once, and never two probes at a time."""
    upstream = Upstream()
    breakers = [make(interval_s=0.02) for _ in range(5)]
    for breaker in breakers:
        breaker.record_failure(NO_RESPONSE, upstream.probe)
        breaker.record_failure(NO_RESPONSE, upstream.probe)
    upstream.wait_for(6)
    assert upstream.most_at_once == 1
    assert len([thread for thread in threading.enumerate() if thread.name == "probe"]) == 1


def test_what_is_kept_back_is_probed_too(make: Make) -> None:
    """One repository that hangs must not keep the others from an upstream that is well."""
    breaker, poison, other = make(interval_s=0.02), Upstream(), Upstream(None)
    breaker.record_failure(NO_RESPONSE, poison.probe)
    poison.wait_for(2)
    with pytest.raises(Unavailable):
        breaker.check(other.probe)
    wait_until(lambda: not is_open(breaker))
    assert other.probes == 1


def test_a_prober_that_died_is_replaced(make: Make) -> None:
    """By the next worker that has something to probe."""
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
    """A worker that knows nothing to probe: one in five seconds."""
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


def test_a_living_prober_keeps_callers_back_for_as_long_as_it_needs(make: Make) -> None:
    """A probe may take longer than five seconds."""
    clock = Clock()
    breaker, other = make(clock), make(clock)
    breaker.record_failure(NO_RESPONSE, Upstream().probe)
    clock.now += 100
    assert is_open(other)


def test_a_limit_lasts_as_long_as_it_was_told(make: Make) -> None:
    """With the rest of it as Retry-After, for all workers."""
    clock = Clock()
    one, other = make(clock), make(clock)
    one.record_failure(errors.rate_limited("x", 30), Upstream().probe)
    clock.now += 10.5
    with pytest.raises(TooManyRequests) as caught:
        other.check()
    assert (caught.value.retry_after_s, caught.value.remembered) == (20, True)


def test_after_a_limit_one_caller_goes_first(make: Make) -> None:
    """One request per window; its answer decides for the others."""
    clock = Clock()
    one, other = make(clock), make(clock)
    one.record_failure(errors.rate_limited("x", 30), Upstream().probe)
    clock.now += 31
    assert [is_open(breaker) for breaker in (other, one, other)] == [False, True, True]
    other.record_success()
    assert not is_open(one)


def test_an_outage_during_a_limit_is_an_outage(make: Make) -> None:
    """The newest state counts."""
    breaker = make()
    breaker.record_failure(errors.rate_limited("x", 30), Upstream().probe)
    breaker.record_failure(NO_RESPONSE, Upstream().probe)
    with pytest.raises(Unavailable):
        breaker.check()


def test_a_state_from_before_a_reboot_is_ignored(make: Make) -> None:
    """The monotonic clock begins anew then."""
    clock = Clock()
    make(clock).record_failure(NO_RESPONSE, Upstream().probe)
    clock.now = 10.0
    assert not is_open(make(clock))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"kind": 5}', b"\xff" * 10_000])
def test_a_broken_file_is_no_state(make: Make, tmp_path: Path, content: bytes) -> None:
    """Rather one request too many than none at all."""
    breaker = make()
    breaker.record_failure(errors.rate_limited("x", 60), Upstream().probe)
    (file,) = tmp_path.glob("*.breaker")
    file.write_bytes(content)
    assert not is_open(breaker)


def test_a_directory_that_cannot_be_written_leaves_memory(tmp_path: Path) -> None:
    """A full disk does not make an upstream be asked again and again."""
    breaker = CircuitBreaker(tmp_path / "missing", NAME, interval_s=1000)
    breaker.record_failure(errors.rate_limited("x", 60), Upstream().probe)
    assert is_open(breaker)
    breaker.record_success()
    assert not is_open(breaker)


def test_the_lock_is_not_inherited(make: Make, tmp_path: Path) -> None:
    """A credential helper that outlives its worker must not pass for a prober."""
    breaker = make()
    breaker.record_failure(NO_RESPONSE, Upstream().probe)
    (file,) = tmp_path.glob("*.probe")
    ours = [fd for fd in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{fd}") == str(file)]
    assert len(ours) == 1
    assert not os.get_inheritable(int(ours[0]))
