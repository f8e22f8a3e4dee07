"""How long things may take: every bound of the matrix as a formula of the settings.

The table of the matrix has numbers for the default settings; here the waits are shortened, so that a fault costs
seconds, and each bound follows. `test_limits.py` checks that with the defaults the formulas give the table's numbers.
"""

import attrs

SLACK_S = 1.5  # two cores that many servers, clients and tests share
FAST_S = 0.05
PACE = 5  # times what a hit takes elsewhere, where everything is slow
RECOVERY_S = 5.0
LINGER_S = 60.0
PROBE_EVERY_S = 3.0 * 0.8  # three seconds, and a fifth less at times


@attrs.frozen
class Limits:
    """The settings that bound the waits, and what is fixed in the program (`lookup_s`, `answer_s`). In seconds."""

    connect_s: float = 1.0
    check_s: float = 2.0
    stall_s: float = 2.0
    lookup_s: float = 5.0
    answer_s: float = 10.0

    @property
    def settings(self) -> dict[str, str]:
        """The `upstream:` of the settings."""
        return {
            "connect_timeout": f"{self.connect_s}s",
            "check_timeout": f"{self.check_s}s",
            "stall_timeout": f"{self.stall_s}s",
        }

    def at_once(self) -> float:
        """Somebody said no: a stale answer."""
        return 0.5

    def untrusted(self) -> float:
        """A handshake that came to nothing."""
        return 1.0

    def no(self) -> float:
        """Somebody said no: an error, and nothing worth waiting for."""
        return 2.0

    def bad_content(self) -> float:
        """What came was wrong, and perhaps was asked for once more."""
        return 5.0

    def connect(self) -> float:
        """A tag check that cannot connect."""
        return min(self.connect_s, self.check_s) + 0.5

    def connect_twice(self) -> float:
        """Two attempts to connect."""
        return 2 * self.connect_s + 1

    def check(self) -> float:
        """A tag check that gets no answer."""
        return self.check_s + 0.5

    def lookup(self) -> float:
        """A tag check, or an error, when the name is not found in time."""
        return self.lookup_s + 0.5

    def lookup_error(self) -> float:
        """An error when the name is not found in time."""
        return self.lookup_s + 1

    def answer(self) -> float:
        """A manifest that does not come, or not to its end."""
        return max(self.answer_s, self.check_s) + 0.5

    def first_byte(self) -> float:
        """A blob of which no byte comes."""
        return self.stall_s + 0.5

    def stalls(self) -> float:
        """A blob that stalls at each of four attempts, with the pauses between them."""
        return 4 * self.stall_s + 15

    def breaks(self) -> float:
        """A blob that breaks and cannot be had again: four attempts with their pauses."""
        return 12.0

    def breaks_silently(self) -> float:
        """The same where each new connection takes until its limit."""
        return 4 * self.connect_s + 13


DEFAULTS = Limits(connect_s=3.0, check_s=5.0, stall_s=15.0)
