"""The error of `dockyard pull`, and whether and when a failed request is retried. Pure.

- A request whose connection fails, or whose body breaks off, is attempted up to MAX_ATTEMPTS times.
- A response that asks to retry (429, 5xx but 508), and content with a wrong digest, get one retry, because Dockyard
  has retried at the upstream already. The retry waits for Retry-After if that is at most MAX_PAUSE_S.
- Any other response is final.
"""

from typing import Final, Self

MAX_ATTEMPTS: Final = 5
MAX_ATTEMPTS_AFTER_RESPONSE: Final = 2
FIRST_PAUSE_S: Final = 0.2  # doubled with each attempt
MAX_PAUSE_S: Final = 10.0
LOOP_DETECTED: Final = 508  # a mistake in settings


class PullError(Exception):
    """A manifest or blob could not be read. `message` is for the user, `has_response` whether a server responded."""

    def __init__(
        self, message: str, max_attempts: int, *, retry_after_s: float = 0.0, has_response: bool = True
    ) -> None:
        super().__init__(message)
        self.message = message
        self.max_attempts = max_attempts
        self.retry_after_s = retry_after_s
        self.has_response = has_response

    @classmethod
    def connection_failed(cls, message: str) -> Self:
        """The connection could not be made, or was lost."""
        return cls(message, MAX_ATTEMPTS, has_response=False)

    @classmethod
    def error_status(cls, message: str, status: int, retry_after_s: float = 0.0) -> Self:
        """The response has an error status."""
        is_temporary = status == 429 or (status >= 500 and status != LOOP_DETECTED)
        return cls(message, MAX_ATTEMPTS_AFTER_RESPONSE if is_temporary else 1, retry_after_s=retry_after_s)

    @classmethod
    def wrong_digest(cls, message: str) -> Self:
        """The content of a blob does not match its digest."""
        return cls(message, MAX_ATTEMPTS_AFTER_RESPONSE)

    @classmethod
    def final(cls, message: str) -> Self:
        """A retry would have the same result."""
        return cls(message, 1)

    def find_pause(self, attempts: int) -> float | None:
        """Return the seconds to wait after so many attempts in a row; None if there is no further attempt."""
        pause_s = max(FIRST_PAUSE_S * 2.0 ** (attempts - 1), self.retry_after_s)
        return pause_s if attempts < self.max_attempts and pause_s <= MAX_PAUSE_S else None
