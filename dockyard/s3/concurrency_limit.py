"""A limit on concurrent uploads that adapts to the load of the S3 service: halved on overload, then raised by one."""

import threading


class ConcurrencyLimit:
    """A semaphore whose number of permits varies between 1 and `maximum`. Thread-safe."""

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._permits = maximum
        self._in_use = 0
        self._condition = threading.Condition()

    def acquire(self, *, blocking: bool) -> bool:
        """Take a permit; `release` returns it. False when none is free and the call is not `blocking`."""
        with self._condition:
            while self._in_use >= self._permits:
                if not blocking:
                    return False
                self._condition.wait()
            self._in_use += 1
            return True

    def release(self) -> None:
        """Return a permit."""
        with self._condition:
            self._in_use -= 1
            self._condition.notify()

    def increase(self) -> None:
        """Add one permit, up to the maximum."""
        with self._condition:
            self._permits = min(self._permits + 1, self._maximum)
            self._condition.notify()

    def halve(self) -> None:
        """Remove half of the permits, but keep at least one. Permits in use are not revoked."""
        with self._condition:
            self._permits = max(self._permits // 2, 1)
