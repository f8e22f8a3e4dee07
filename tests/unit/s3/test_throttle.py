"""The throttle: half as many places after each refusal, one more for each success, between one and the most."""

import threading

from dockyard.s3.throttle import Throttle


def free_places(throttle: Throttle) -> int:
    """How many can be taken now; they are given back."""
    taken = 0
    while throttle.enter(waits=False):
        taken += 1
    for _ in range(taken):
        throttle.leave()
    return taken


def test_it_halves_and_recovers_one_by_one() -> None:
    """Eight, four, two, one and never none; and back to eight, never more."""
    throttle = Throttle(8)
    seen = [free_places(throttle)]
    for _ in range(4):
        throttle.was_too_much()
        seen.append(free_places(throttle))
    for _ in range(8):
        throttle.went_well()
        seen.append(free_places(throttle))
    assert seen == [8, 4, 2, 1, 1, 2, 3, 4, 5, 6, 7, 8, 8]


def test_what_runs_goes_on_when_places_are_taken_away() -> None:
    """Four run when two places are left: two must leave before there is one for somebody else."""
    throttle = Throttle(4)
    for _ in range(4):
        assert throttle.enter(waits=False)
    throttle.was_too_much()
    throttle.leave()
    throttle.leave()
    assert not throttle.enter(waits=False)
    throttle.leave()
    assert throttle.enter(waits=False)


def test_who_waits_gets_the_next_place() -> None:
    """One is taken; another thread waits for it, and has it when it is given back."""
    throttle = Throttle(1)
    assert throttle.enter(waits=False)
    has_entered = threading.Event()

    def wait() -> None:
        throttle.enter(waits=True)
        has_entered.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not has_entered.wait(0.05)
    throttle.leave()
    assert has_entered.wait(5.0)
    thread.join()
