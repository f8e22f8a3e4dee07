"""How often, and after which wait, a source that breaks off is opened again. For several threads."""

import random
import threading

from dockyard.errors import BadUpstream, RegistryError, TooManyRequests, Unavailable, UpstreamTimeout

PROGRESS_BYTES = 1024 * 1024
MAX_FRUITLESS_ATTEMPTS = 4
MAX_ATTEMPTS_WITHOUT_A_BYTE = 2
BACKOFF_S = (0.2, 3.0)
MAX_RATE_LIMIT_WAIT_S = 10.0


class Retries:
    """The attempts of one download, over one connection or several at a time.

    MAX_FRUITLESS_ATTEMPTS in a row that each brought less than PROGRESS_BYTES end it. Those that fail at the same time
    count as one: they have one cause.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures = 0
        self._fruitless_attempts = 0
        self._has_ended = False

    def begin(self) -> int:
        """The number of an attempt that begins now, for `find_wait_s`."""
        with self._lock:
            return self._failures

    def record_progress(self) -> None:
        """An attempt has brought all that it was for, however little that is."""
        with self._lock:
            self._fruitless_attempts = 0

    def find_wait_s(self, exc: RegistryError, *, attempt: int, brought_bytes: int, has_bytes: bool) -> float | None:
        """Seconds to wait before the next attempt; None if there is none, and from then on. Counts the failed attempt.

        It has brought `brought_bytes`; `has_bytes` says whether anything of the blob was received, by any attempt.
        """
        with self._lock:
            if brought_bytes >= PROGRESS_BYTES:
                self._fruitless_attempts = 0
            elif attempt == self._failures:  # no other one has failed since it began
                self._failures += 1
                self._fruitless_attempts += 1
            self._has_ended = self._has_ended or not self._is_retryable(exc, has_bytes=has_bytes)
            if self._has_ended:
                return None
            if isinstance(exc, TooManyRequests):
                return min(exc.retry_after_s or 1.0, MAX_RATE_LIMIT_WAIT_S)
            if not self._fruitless_attempts:
                return 0.0
            return random.uniform(BACKOFF_S[0], min(BACKOFF_S[1], BACKOFF_S[0] * 2**self._fruitless_attempts))

    def _is_retryable(self, exc: RegistryError, *, has_bytes: bool) -> bool:
        if exc.remembered and isinstance(exc, Unavailable):
            return False
        if has_bytes:
            is_outage = isinstance(exc, Unavailable | BadUpstream | TooManyRequests | UpstreamTimeout)
            return is_outage and self._fruitless_attempts < MAX_FRUITLESS_ATTEMPTS
        return isinstance(exc, Unavailable) and self._fruitless_attempts < MAX_ATTEMPTS_WITHOUT_A_BYTE
