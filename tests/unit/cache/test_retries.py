"""How often a source is opened again, over one connection and over several at a time."""

from dockyard.cache.retries import MAX_FRUITLESS_ATTEMPTS, PROGRESS_BYTES, Retries
from dockyard.errors import BlobUnknown, Unavailable


def fail(retries: Retries, attempt: int, brought_bytes: int = 0) -> float | None:
    """An attempt breaks off."""
    return retries.find_wait_s(Unavailable("cut"), attempt=attempt, brought_bytes=brought_bytes, has_bytes=True)


def test_attempts_in_a_row_without_progress_are_the_last() -> None:
    """And nobody who shares them begins anew."""
    retries = Retries()
    waits = [fail(retries, retries.begin()) for _ in range(MAX_FRUITLESS_ATTEMPTS)]
    assert [wait is None for wait in waits] == [False] * (MAX_FRUITLESS_ATTEMPTS - 1) + [True]
    assert fail(retries, 0, PROGRESS_BYTES) is None


def test_attempts_that_fail_at_the_same_time_count_as_one() -> None:
    """Each of many connections may fail as often as a single one."""
    retries = Retries()
    for _ in range(MAX_FRUITLESS_ATTEMPTS - 1):
        attempts = [retries.begin() for _ in range(10)]
        assert None not in [fail(retries, attempt) for attempt in attempts]
    assert fail(retries, retries.begin()) is None


def test_progress_allows_more_attempts() -> None:
    """Also that of another connection."""
    retries = Retries()
    for _ in range(3 * MAX_FRUITLESS_ATTEMPTS):
        attempts = [retries.begin() for _ in range(2)]
        assert fail(retries, attempts[0]) is not None
        assert fail(retries, attempts[1], PROGRESS_BYTES) == 0


def test_an_error_that_does_not_pass_is_the_last() -> None:
    """Whatever was received."""
    retries = Retries()
    wait_s = retries.find_wait_s(BlobUnknown("gone"), attempt=0, brought_bytes=PROGRESS_BYTES, has_bytes=True)
    assert wait_s is None
    assert fail(retries, retries.begin()) is None
