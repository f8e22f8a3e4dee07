"""The command `bench.isolation` measures what it says: once, in a small form."""

from pathlib import Path

from bench.isolation import measure


def test_pulls_are_measured_without_and_with_load(tmp_path: Path) -> None:
    """All pulls succeed while requests hang at the other upstream."""
    timings = measure(tmp_path, requests=40, rounds=1, workers=1)
    assert isinstance(timings.report(), bool)
