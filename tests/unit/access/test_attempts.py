"""Wrong passwords make the next attempts from their address wait."""

from contextlib import ExitStack
from ipaddress import ip_address

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

HERE = ip_address("192.0.2.1")
THERE = ip_address("192.0.2.2")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def fail(found: Attempts, clock: Clock, address: object = HERE) -> float:
    """Wait as told, then fail; return the seconds of waiting."""
    with found.start(address) as wait_s:  # type: ignore[arg-type]
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
        with found.start(address) as wait_s:
            assert (wait_s > 0) is waits


def test_attempts_at_the_same_time_begin_one_after_the_other() -> None:
    """Many connections do not make guessing faster, and those that would wait too long are refused."""
    clock = Clock()
    found = Attempts(clock)
    for _ in range(MAX_FREE_FAILURES + 20):
        fail(found, clock)
    with ExitStack() as stack:
        waits = [stack.enter_context(found.start(HERE)) for _ in range(int(MAX_WAIT_S / MAX_DELAY_S))]
        assert waits == pytest.approx([MAX_DELAY_S * (number + 1) for number in range(len(waits))])
        with pytest.raises(TooManyRequests) as caught, found.start(HERE):
            pass
        assert caught.value.retry_after_s is not None
        assert MAX_WAIT_S < caught.value.retry_after_s <= MAX_WAIT_S + MAX_DELAY_S
    clock.now += MAX_WAIT_S
    with found.start(HERE) as wait_s:
        assert wait_s <= MAX_WAIT_S


def test_an_address_without_failures_starts_anew() -> None:
    """Its failures are forgotten after some minutes, not before."""
    clock = Clock()
    found = Attempts(clock)
    for _ in range(MAX_FREE_FAILURES + 3):
        fail(found, clock)
    clock.now += FORGET_S - 1.0
    fail(found, clock)
    with found.start(HERE) as wait_s:
        assert wait_s > 0
    clock.now += FORGET_S
    assert [fail(found, clock) for _ in range(MAX_FREE_FAILURES + 1)] == [0.0] * (MAX_FREE_FAILURES + 1)


def test_the_number_of_pending_attempts_is_bounded() -> None:
    """For an address, and for all together; what has ended makes room."""
    found = Attempts(Clock())
    with ExitStack() as stack:
        for _ in range(MAX_PENDING_PER_ADDRESS):
            stack.enter_context(found.start(HERE))
        with pytest.raises(TooManyRequests), found.start(HERE):
            pass
        for number in range(MAX_PENDING - MAX_PENDING_PER_ADDRESS):
            stack.enter_context(found.start(ip_address(f"198.51.100.{number}")))
        with pytest.raises(Unavailable) as caught, found.start(THERE):
            pass
        assert caught.value.retry_after_s
    with found.start(HERE), found.start(THERE):
        pass
    assert found._pending == {}


def test_an_attempt_that_is_cancelled_is_not_pending() -> None:
    """Whatever ends it."""
    found = Attempts(Clock())
    with pytest.raises(KeyboardInterrupt), found.start(HERE):
        raise KeyboardInterrupt
    assert found._pending == {}


def test_the_number_of_remembered_addresses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are forgotten."""
    assert MAX_ADDRESSES < 100_000
    monkeypatch.setattr(attempts, "MAX_ADDRESSES", 10)
    found = Attempts(Clock())
    for number in range(100):
        found.count_failure(ip_address(number + 1))
    assert len(found._failures) == 10
