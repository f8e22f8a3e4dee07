"""Wrong passwords make the next attempts from their address wait."""

from contextlib import AbstractContextManager, ExitStack
from ipaddress import ip_address
from itertools import count

import pytest

from dockyard.access import attempts
from dockyard.access.attempts import (
    FIRST_DELAY_S,
    FORGET_S,
    MAX_ADDRESSES,
    MAX_DELAY_S,
    MAX_FREE_FAILURES,
    MAX_PENDING,
    MAX_PENDING_PER_ADDRESS,
    MAX_WAIT_S,
    Attempts,
)
from dockyard.errors import TooManyRequests, Unavailable

_numbers = count()
HERE = ip_address("192.0.2.1")
THERE = ip_address("192.0.2.2")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def start(found: Attempts, address: object = HERE, login: bytes | None = None) -> AbstractContextManager[float]:
    """An attempt with a login that nobody else has."""
    return found.start(address, login or f"login {next(_numbers)}".encode())  # type: ignore[arg-type]


def fail(found: Attempts, clock: Clock, address: object = HERE) -> float:
    """Wait as told, then fail; return the seconds of waiting."""
    with start(found, address) as wait_s:
        clock.now += wait_s
        found.count_failure(address)  # type: ignore[arg-type]
    return wait_s


def test_the_delay_grows_to_its_limit() -> None:
    """The first failures are free; then it doubles."""
    clock = Clock()
    found = Attempts(clock)
    waits = [fail(found, clock) for _ in range(MAX_FREE_FAILURES + 8)]
    assert waits[: MAX_FREE_FAILURES + 1] == [0.0] * (MAX_FREE_FAILURES + 1)
    grown = [min(FIRST_DELAY_S * 2**number, MAX_DELAY_S) for number in range(7)]
    assert waits[MAX_FREE_FAILURES + 1 :] == pytest.approx(grown)


def test_other_addresses_do_not_wait() -> None:
    """Each address has its own failures; of IPv6, each network of one client."""
    clock = Clock()
    found = Attempts(clock)
    one, same, other = (ip_address(text) for text in ("2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1"))
    for _ in range(20):
        fail(found, clock)
        fail(found, clock, one)
    for address, waits in ((HERE, True), (one, True), (same, True), (THERE, False), (other, False)):
        with start(found, address) as wait_s:
            assert (wait_s > 0) is waits


def test_attempts_at_the_same_time_begin_one_after_the_other() -> None:
    """Many connections do not make guessing faster, and those that would wait too long are refused."""
    clock = Clock()
    found = Attempts(clock)
    for _ in range(MAX_FREE_FAILURES + 20):
        fail(found, clock)
    with ExitStack() as stack:
        waits = [stack.enter_context(start(found, HERE)) for _ in range(int(MAX_WAIT_S / MAX_DELAY_S))]
        assert waits == pytest.approx([MAX_DELAY_S * (number + 1) for number in range(len(waits))])
        with pytest.raises(TooManyRequests) as caught, start(found, HERE):
            pass
        assert caught.value.retry_after_s is not None
        assert MAX_WAIT_S < caught.value.retry_after_s <= MAX_WAIT_S + MAX_DELAY_S
    clock.now += MAX_WAIT_S
    with start(found, HERE) as wait_s:
        assert wait_s <= MAX_WAIT_S


def test_an_address_without_failures_starts_anew() -> None:
    """Its failures are forgotten after some minutes, not before."""
    clock = Clock()
    found = Attempts(clock)
    for _ in range(MAX_FREE_FAILURES + 3):
        fail(found, clock)
    clock.now += FORGET_S - 1.0
    fail(found, clock)
    with start(found, HERE) as wait_s:
        assert wait_s > 0
    clock.now += FORGET_S
    assert [fail(found, clock) for _ in range(MAX_FREE_FAILURES + 1)] == [0.0] * (MAX_FREE_FAILURES + 1)


def test_the_number_of_pending_attempts_is_bounded() -> None:
    """For an address, and for all together; what has ended makes room."""
    found = Attempts(Clock())
    with ExitStack() as stack:
        for _ in range(MAX_PENDING_PER_ADDRESS):
            stack.enter_context(start(found, HERE))
        with pytest.raises(TooManyRequests), start(found, HERE):
            pass
        for number in range(MAX_PENDING - MAX_PENDING_PER_ADDRESS):
            stack.enter_context(start(found, ip_address(f"198.51.100.{number}")))
        with pytest.raises(Unavailable) as caught, start(found, THERE):
            pass
        assert caught.value.retry_after_s
    with start(found, HERE), start(found, THERE):
        pass
    assert not found._pending
    assert not found._starts


def test_attempts_with_the_same_login_count_once() -> None:
    """A fleet with one login at the same moment is not refused, and does not get around a delay."""
    clock = Clock()
    found = Attempts(clock)
    for _ in range(MAX_FREE_FAILURES + 1):
        fail(found, clock)
    with start(found, login=b"same") as first_s:
        assert first_s == FIRST_DELAY_S
        clock.now += 0.2
        with ExitStack() as stack:
            for number in range(2 * MAX_PENDING):
                address = HERE if number % 2 else ip_address(f"198.51.100.{number}")
                wait_s = stack.enter_context(start(found, address, b"same"))
                assert wait_s == pytest.approx(FIRST_DELAY_S - 0.2)
        with start(found) as other_s:
            assert other_s == pytest.approx(2 * FIRST_DELAY_S - 0.2)
    assert not found._pending
    assert not found._starts


def test_an_attempt_that_is_cancelled_is_not_pending() -> None:
    """Whatever ends it."""
    found = Attempts(Clock())
    with pytest.raises(KeyboardInterrupt), start(found, HERE):
        raise KeyboardInterrupt
    assert not found._pending
    assert not found._starts


def test_the_number_of_remembered_addresses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are forgotten."""
    assert MAX_ADDRESSES < 100_000
    monkeypatch.setattr(attempts, "MAX_ADDRESSES", 10)
    found = Attempts(Clock())
    for number in range(100):
        found.count_failure(ip_address(number + 1))
    assert len(found._failures) == 10
