"""Medians and their confidence intervals.

The interval is the one between two order statistics: from the k-th smallest to the k-th largest of n values, with the
largest k for which it contains the median of the distribution with at least the wanted probability. That probability is
1 - 2 P(X < k), where X has the binomial distribution of n and 1/2. It is exact for any continuous distribution, so that
nothing is assumed of how times and ratios are distributed (H. A. David, H. N. Nagaraja: Order Statistics, third
edition, section 7.1). With 90 percent there is an interval from 5 values on: that of the smallest and the largest.
"""

import math
import statistics
from collections.abc import Sequence

import attrs

CONFIDENCE = 0.9


@attrs.frozen
class Estimate:
    """The median of some values, and its interval; too few values have none."""

    median: float
    interval: tuple[float, float] | None

    @property
    def relative_width(self) -> float:
        """The width of the interval as a part of the median; infinite without an interval."""
        if self.interval is None:
            return math.inf
        low, high = self.interval
        return (high - low) / abs(self.median) if self.median else (0.0 if low == high else math.inf)


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Return the median of at least one value."""
    ordered = sorted(values)
    rank = _rank(len(ordered), confidence)
    interval = (ordered[rank - 1], ordered[-rank]) if rank else None
    return Estimate(statistics.median(ordered), interval)


def _rank(count: int, confidence: float) -> int:
    """Return the largest k; 0 if there is none."""
    rank, below = 0, 0.0  # P(X < rank)
    while rank < count / 2:
        below += math.comb(count, rank) / 2**count
        if 1 - 2 * below < confidence:
            break
        rank += 1
    return rank
