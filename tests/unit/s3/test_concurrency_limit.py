"""The concurrency limit: halved on overload, raised by one on success, between one and its maximum."""

import threading

from dockyard.s3.concurrency_limit import ConcurrencyLimit
from tests.support.busy_machine import EVENT_TIMEOUT_S


def free_permits(limit: ConcurrencyLimit) -> int:
    """Count the permits that can be acquired now; all of them are released again."""
    acquired = 0
    while limit.acquire(blocking=False):
        acquired += 1
    for _ in range(acquired):
        limit.release()
    return acquired


def test_it_halves_and_recovers_one_by_one() -> None:
    """Eight, four, two, one and never zero; then back to eight, never more."""
    limit = ConcurrencyLimit(8)
    seen = [free_permits(limit)]
    for _ in range(4):
        limit.halve()
        seen.append(free_permits(limit))
    for _ in range(8):
        limit.increase()
        seen.append(free_permits(limit))
    assert seen == [8, 4, 2, 1, 1, 2, 3, 4, 5, 6, 7, 8, 8]


def test_halving_does_not_revoke_permits_in_use() -> None:
    """Four are in use when the limit becomes two: three must be released before one can be acquired."""
    limit = ConcurrencyLimit(4)
    for _ in range(4):
        assert limit.acquire(blocking=False)
    limit.halve()
    limit.release()
    limit.release()
    assert not limit.acquire(blocking=False)
    limit.release()
    assert limit.acquire(blocking=False)


def test_a_blocked_acquire_returns_when_a_permit_is_released() -> None:
    """The only permit is in use; another thread waits for it and gets it."""
    limit = ConcurrencyLimit(1)
    assert limit.acquire(blocking=False)
    has_acquired = threading.Event()

    def wait() -> None:
        limit.acquire(blocking=True)
        has_acquired.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not has_acquired.wait(0.05)
    limit.release()
    assert has_acquired.wait(EVENT_TIMEOUT_S)
    thread.join()
