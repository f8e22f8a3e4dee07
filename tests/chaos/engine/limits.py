"""How long things may take: every limit of the matrix as a formula of the settings.

With the default settings, the limits are those of `test_limits.py`. The tests run with shorter timeouts, so that a
fault costs seconds; the limits follow.
"""

import attrs

SLACK_S = 1.5  # of `is_within`: the machine has two cores, which many servers, clients and tests share
FAST_S = 0.05
RECOVERY_S = 5.0
PROBE_EVERY_S = 3.0 * 0.8  # of the circuit breaker: every three seconds, with a jitter of a fifth


@attrs.frozen
class Limits:
    """The settings that bound the waits, and what is fixed in the program (`lookup_s`, `response_s`). In seconds."""

    connect_s: float = 1.0
    check_s: float = 2.0
    stall_s: float = 2.0
    lookup_s: float = 5.0
    response_s: float = 10.0

    @property
    def settings(self) -> dict[str, str]:
        """The `upstream:` of the settings."""
        return {
            "connect_timeout": f"{self.connect_s}s",
            "check_timeout": f"{self.check_s}s",
            "stall_timeout": f"{self.stall_s}s",
        }

    def at_once(self) -> float:
        """A stale response, when the upstream refuses."""
        return 0.5

    def untrusted(self) -> float:
        """A TLS handshake that fails."""
        return 1.0

    def no(self) -> float:
        """An error, when the upstream refuses."""
        return 2.0

    def bad_content(self) -> float:
        """Wrong content, perhaps requested once more."""
        return 5.0

    def connect(self) -> float:
        """A freshness check that cannot connect."""
        return min(self.connect_s, self.check_s) + 0.5

    def connect_twice(self) -> float:
        """Two attempts to connect."""
        return 2 * self.connect_s + 1

    def check(self) -> float:
        """A freshness check without a response."""
        return self.check_s + 0.5

    def lookup(self) -> float:
        """A freshness check whose name lookup times out."""
        return self.lookup_s + 0.5

    def lookup_error(self) -> float:
        """An error when the name lookup times out."""
        return self.lookup_s + 1

    def response(self) -> float:
        """A manifest that does not arrive, or not completely."""
        return max(self.response_s, self.check_s) + 0.5

    def first_byte(self) -> float:
        """A blob of which no byte arrives."""
        return self.stall_s + 0.5

    def stalls(self) -> float:
        """A blob that stalls at each of four attempts, with the pauses between them."""
        return 4 * self.stall_s + 15

    def breaks(self) -> float:
        """A blob whose connection breaks, and four attempts that fail, with the pauses between them."""
        return 12.0

    def breaks_silently(self) -> float:
        """The same where each attempt to connect takes until its timeout."""
        return 4 * self.connect_s + 13


DEFAULTS = Limits(connect_s=3.0, check_s=5.0, stall_s=15.0)
