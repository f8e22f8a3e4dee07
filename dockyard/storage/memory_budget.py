"""The memory of one worker for downloads that continue without a disk."""

import threading

MAX_OVERFLOW_BYTES = 128 * 1024 * 1024
# What one download may hold. The minimum is for a blob of which nothing is sent before it is verified (MAX_SMALL_BYTES
# of `cache.download`), or for one chunk that is read and one that is received.
MAX_WINDOW_BYTES = 4 * 1024 * 1024
MIN_WINDOW_BYTES = 5 * 256 * 1024
# A window is this part of what is free, so that 64 downloads at once fit.
WINDOWS_PER_FREE_BYTES = 32


class MemoryBudget:
    """Counts the bytes that all overflowing downloads of a worker hold. For many threads; does not block."""

    def __init__(self, max_bytes: int = MAX_OVERFLOW_BYTES) -> None:
        self.free_bytes = max_bytes
        self._mutex = threading.Lock()

    @property
    def window_bytes(self) -> int:
        """How much one download may hold now: less, the more the others hold."""
        return max(MIN_WINDOW_BYTES, min(MAX_WINDOW_BYTES, self.free_bytes // WINDOWS_PER_FREE_BYTES))

    def take(self, amount: int) -> bool:
        """Take some bytes; False when so many are not free."""
        with self._mutex:
            if amount > self.free_bytes:
                return False
            self.free_bytes -= amount
            return True

    def give_back(self, amount: int) -> None:
        """Return bytes that were taken."""
        with self._mutex:
            self.free_bytes += amount
