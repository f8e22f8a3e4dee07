"""Confidence intervals of medians."""

import math
import random
import statistics

import pytest

from bench.peers.intervals import Estimate, estimate


@pytest.mark.parametrize(
    ("count", "confidence", "interval"),
    [
        (1, 0.9, None),
        (4, 0.9, None),  # the smallest and the largest: 87.5 percent
        (5, 0.9, (1, 5)),  # 93.75 percent
        (7, 0.9, (1, 7)),
        (8, 0.9, (2, 7)),  # 92.97 percent
        (11, 0.9, (3, 9)),  # 93.46 percent
        (15, 0.9, (4, 12)),  # 96.48 percent
        (6, 0.98, None),
        (7, 0.98, (1, 7)),  # 98.44 percent
        (6, 0.95, (1, 6)),
    ],
)
def test_the_interval_is_between_two_of_the_values(
    count: int, confidence: float, interval: tuple[float, float] | None
) -> None:
    """Those of the binomial distribution; the order of the values does not matter."""
    values = list(range(1, count + 1))
    random.Random(count).shuffle(values)
    found = estimate(values, confidence)
    assert found.interval == interval
    assert found.median == statistics.median(values)


def test_the_interval_contains_the_median_as_often_as_it_says() -> None:
    """Of a distribution with a long tail, as that of times."""
    source = random.Random(1)
    times = 4000
    hits = 0
    for _ in range(times):
        found = estimate([source.lognormvariate(0, 1) for _ in range(8)])
        assert found.interval is not None
        hits += found.interval[0] <= 1 <= found.interval[1]  # the median is exp(0)
    assert hits / times == pytest.approx(0.9297, abs=0.015)


def test_the_width_is_a_part_of_the_median() -> None:
    """Infinite where there is no interval."""
    assert Estimate(2.0, (1.5, 2.5)).relative_width == 0.5
    assert Estimate(2.0, None).relative_width == math.inf
    assert Estimate(0.0, (0.0, 0.0)).relative_width == 0
    assert Estimate(0.0, (0.0, 1.0)).relative_width == math.inf
