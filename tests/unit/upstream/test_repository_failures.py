"""Repositories that fail: they alone are not asked."""

import threading
import time
from collections.abc import Callable

import pytest

from dockyard.errors import ManifestUnknown, RegistryError, Unavailable, UpstreamTimeout
from dockyard.upstream import errors
from dockyard.upstream.errors import UpstreamError
from dockyard.upstream.repository_failures import (
    FORGET_AFTER_S,
    INTERVAL_S,
    MAX_REPOSITORIES,
    MAX_TRIES,
    TRY_WAIT_S,
    RepositoryFailures,
)
from tests.support.busy_machine import EVENT_TIMEOUT_S, is_within
from tests.support.upstreams import DETAILS

TIMEOUT = errors.timed_out("up.test", DETAILS)
SERVER_ERROR = errors.server_error("up.test", 500, DETAILS)


class Upstream:
    """An operation: `fault` is raised unless it is None. It is held back while `gate` is not set."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault = fault
        self.calls = 0
        self.gate = threading.Event()
        self.gate.set()

    def operation(self) -> None:
        self.calls += 1
        assert self.gate.wait(EVENT_TIMEOUT_S)
        if self.fault:
            raise self.fault


class Registry:
    """The failures of one upstream; calls of the circuit breaker are in `outages`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.outages: list[UpstreamError] = []
        self.failures = RepositoryFailures("up.test", lambda fault, _: self.outages.append(fault), lambda: self.now)

    def error_of(
        self, repository: str, operation: Callable[[], object] = lambda: None, *, may_wait: bool = False
    ) -> RegistryError | None:
        is_failing = self.failures.is_failing(repository)
        try:
            self.failures.check(repository, operation, may_wait=may_wait)
        except RegistryError as error:
            assert is_failing
            return error
        assert may_wait or not is_failing
        return None

    def fail(self, repository: str, fault: UpstreamError = TIMEOUT, times: int = 1) -> list[bool]:
        return [self.failures.record_failure(repository, fault) for _ in range(times)]

    def wait_for_tries(self) -> None:
        wait_until(lambda: self.failures._tries == 0)


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll until another thread has made the condition true."""
    deadline = time.monotonic() + EVENT_TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("fault", "kind"), [(TIMEOUT, UpstreamTimeout), (errors.connection_lost("x", DETAILS), Unavailable)]
)
def test_a_request_without_a_response_concerns_its_repository(fault: UpstreamError, kind: type[RegistryError]) -> None:
    """It fails at once from then on, and others are asked. The registry is checked once."""
    registry = Registry()
    assert registry.fail("slow", fault, 3) == [True, False, False]
    error = registry.error_of("slow")
    assert type(error) is kind
    assert (error.message, error.remembered, error.retry_after_s) == (fault.error.message, True, 3)
    assert registry.error_of("other") is None


def test_five_server_errors_in_a_row_concern_their_repository() -> None:
    """Not four, and not with a response in between."""
    registry = Registry()
    assert registry.fail("bad", SERVER_ERROR, 4) == [False] * 4
    registry.failures.record_success("bad")
    assert registry.fail("bad", SERVER_ERROR, 4) == [False] * 4
    assert registry.error_of("bad") is None
    assert registry.fail("bad", SERVER_ERROR) == [True]
    assert isinstance(registry.error_of("bad"), Unavailable)
    assert registry.error_of("other") is None


def test_server_errors_of_many_repositories_have_the_registry_checked() -> None:
    """One each: none of them has failed five times, but the registry may be down."""
    registry = Registry()
    found = [registry.failures.record_failure(f"app{number}", SERVER_ERROR) for number in range(10)]
    assert found == [False, False, False, False, True] * 2
    assert not any(registry.error_of(f"app{number}") for number in range(10))


def test_a_tag_of_another_repository_tells_whether_the_registry_is_up() -> None:
    """The failing repository itself is no evidence, and neither is an operation that is expensive."""
    registry = Registry()

    def check(_: float) -> None:
        """Check a tag."""

    def other_check(_: float) -> None:
        """Check another tag."""

    registry.failures.record_success("app", check)
    registry.failures.record_success("blobs")
    assert registry.failures.find_known_good("app") is None
    registry.failures.record_success("other", other_check)
    assert registry.failures.find_known_good("app") is other_check
    assert registry.failures.find_known_good("third") in (check, other_check)


def test_a_failing_repository_is_tried_in_the_background() -> None:
    """Every three seconds, one at a time, by an operation that was rejected; its success ends the failure."""
    registry, upstream = Registry(), Upstream(TIMEOUT)
    registry.fail("slow")
    assert registry.error_of("slow", upstream.operation)
    assert upstream.calls == 0
    registry.now += INTERVAL_S
    upstream.gate.clear()
    for _ in range(5):
        assert registry.error_of("slow", upstream.operation)
        registry.now += INTERVAL_S
    wait_until(lambda: upstream.calls == 1)
    upstream.gate.set()
    registry.wait_for_tries()
    assert registry.error_of("slow", upstream.operation)
    upstream.fault = None
    registry.now += INTERVAL_S
    assert registry.error_of("slow", upstream.operation)
    registry.wait_for_tries()
    assert registry.error_of("slow") is None
    assert upstream.calls == 2


def test_who_has_a_repository_tried_may_wait_for_the_result() -> None:
    """Its request goes on if the repository is well again; others do not wait, and it does not wait for long."""
    registry, upstream = Registry(), Upstream()
    registry.fail("slow")
    assert registry.error_of("slow", upstream.operation, may_wait=True)
    registry.now += INTERVAL_S
    assert registry.error_of("slow", upstream.operation, may_wait=True) is None
    assert upstream.calls == 1

    registry.fail("slow")
    registry.now += INTERVAL_S
    upstream.gate.clear()
    began_at = time.monotonic()
    assert registry.error_of("slow", upstream.operation, may_wait=True)
    assert is_within(time.monotonic() - began_at, TRY_WAIT_S)
    began_at = time.monotonic()
    assert registry.error_of("slow", upstream.operation, may_wait=True)
    assert is_within(time.monotonic() - began_at, 0)
    upstream.gate.set()
    registry.wait_for_tries()


@pytest.mark.parametrize(
    "answer", [None, ManifestUnknown("no such tag"), errors.bad_response("x", "sent a page", DETAILS)]
)
def test_any_response_to_a_try_ends_the_failure(answer: Exception | None) -> None:
    """Also 404, and content that makes no sense."""
    registry = Registry()
    registry.fail("slow")
    registry.now += INTERVAL_S
    assert registry.error_of("slow", Upstream(answer).operation)
    registry.wait_for_tries()
    assert registry.error_of("slow") is None


@pytest.mark.parametrize(
    "fault", [errors.unreachable("x", "connection failed", DETAILS), errors.rate_limited("x", 30, DETAILS)]
)
def test_a_try_may_find_that_the_registry_is_unavailable(fault: UpstreamError) -> None:
    """The circuit breaker is informed."""
    registry = Registry()
    registry.fail("slow")
    registry.now += INTERVAL_S
    assert registry.error_of("slow", Upstream(fault).operation)
    wait_until(lambda: registry.outages == [fault])


def test_few_repositories_are_tried_at_the_same_time() -> None:
    """Clients can make up names."""
    registry, upstream = Registry(), Upstream()
    upstream.gate.clear()
    for number in range(2 * MAX_TRIES):
        registry.fail(f"bad{number}")
    registry.now += INTERVAL_S
    for number in range(2 * MAX_TRIES):
        assert registry.error_of(f"bad{number}", upstream.operation)
    wait_until(lambda: upstream.calls == MAX_TRIES)
    upstream.gate.set()
    registry.wait_for_tries()
    assert upstream.calls == MAX_TRIES


def test_a_try_that_is_broken_ends_nothing() -> None:
    """It is logged, and the repository is tried again later."""
    registry = Registry()
    registry.fail("slow")
    registry.now += INTERVAL_S
    assert registry.error_of("slow", Upstream(ValueError("a bug")).operation)
    registry.wait_for_tries()
    assert registry.error_of("slow")


def test_a_failure_is_forgotten_after_a_minute() -> None:
    """The next request is sent."""
    registry, upstream = Registry(), Upstream()
    registry.fail("slow")
    registry.now += FORGET_AFTER_S + 1
    assert registry.error_of("slow", upstream.operation) is None
    assert upstream.calls == 0


def test_a_success_ends_the_failure_at_once() -> None:
    """For example of a request that had been sent before."""
    registry = Registry()
    registry.fail("slow")
    registry.failures.record_success("slow")
    assert registry.error_of("slow") is None


def test_an_open_circuit_breaker_answers_for_all() -> None:
    """After it has closed, every repository is asked."""
    registry = Registry()
    registry.fail("slow")
    registry.failures.forget()
    assert registry.error_of("slow") is None


def test_memory_is_limited() -> None:
    """Clients can make up names."""
    registry = Registry()
    for number in range(MAX_REPOSITORIES + 10):
        registry.fail(f"bad{number}", SERVER_ERROR)
    assert len(registry.failures._repositories) == MAX_REPOSITORIES
