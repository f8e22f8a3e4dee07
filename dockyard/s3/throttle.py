"""How much may run at once: a store that was too busy is given half as much, and one more for each that it takes."""

import threading


class Throttle:
    """Places for what runs at once, `at_most` of them when all is well. For many threads."""

    def __init__(self, at_most: int) -> None:
        self._at_most = at_most
        self._places = at_most
        self._taken = 0
        self._condition = threading.Condition()

    def enter(self, *, waits: bool) -> bool:
        """Take a place, to be given back by `leave`; False when none is free and the caller does not wait for one."""
        with self._condition:
            while self._taken >= self._places:
                if not waits:
                    return False
                self._condition.wait()
            self._taken += 1
            return True

    def leave(self) -> None:
        """Give a place back."""
        with self._condition:
            self._taken -= 1
            self._condition.notify()

    def went_well(self) -> None:
        """One more place, if all are not there."""
        with self._condition:
            self._places = min(self._places + 1, self._at_most)
            self._condition.notify()

    def was_too_much(self) -> None:
        """Half of the places, but one."""
        with self._condition:
            self._places = max(self._places // 2, 1)
