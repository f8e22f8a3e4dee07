"""What could not be read, and whether another try may help. Pure.

- A connection that fails, or a body that breaks off, is tried again up to TRIES_IN_A_ROW times.
- An answer that says "later" (429, 5xx), and bytes with another digest, get one more try: Dockyard has been patient
  with the upstream already. The try comes after the answer's Retry-After, if that is not long.
- Any other answer is final.
"""

from typing import Final, Self

TRIES_IN_A_ROW: Final = 5
TRIES_OF_ANSWERS: Final = 2
PAUSE_S: Final = 0.2  # doubled with each try
RETRY_AFTER_AT_MOST_S: Final = 10.0


class Failed(Exception):
    """It could not be read. The message is for whoever typed the command. `is_answered`: somebody was there."""

    def __init__(
        self, message: str, tries_at_most: int, *, retry_after_s: float = 0.0, is_answered: bool = True
    ) -> None:
        super().__init__(message)
        self.message = message
        self.tries_at_most = tries_at_most
        self.retry_after_s = retry_after_s
        self.is_answered = is_answered

    @classmethod
    def broken(cls, message: str) -> Self:
        """The connection failed."""
        return cls(message, TRIES_IN_A_ROW, is_answered=False)

    @classmethod
    def refused(cls, message: str, status: int, retry_after_s: float = 0.0) -> Self:
        """There was an answer, and it was no."""
        is_later = status == 429 or status >= 500
        return cls(message, TRIES_OF_ANSWERS if is_later else 1, retry_after_s=retry_after_s)

    @classmethod
    def wrong(cls, message: str) -> Self:
        """The bytes of a blob are not what they should be."""
        return cls(message, TRIES_OF_ANSWERS)

    @classmethod
    def final(cls, message: str) -> Self:
        """There is nothing that another try could change."""
        return cls(message, 1)

    def pause_after(self, tries: int) -> float | None:
        """Return the seconds to wait after so many tries in a row; None when another is of no use."""
        pause_s = max(PAUSE_S * 2.0 ** (tries - 1), self.retry_after_s)
        return pause_s if tries < self.tries_at_most and pause_s <= RETRY_AFTER_AT_MOST_S else None
