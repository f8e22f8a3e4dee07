"""Fixtures that unit tests share."""

from collections.abc import Callable

import pytest

from dockyard import metrics
from tests.support.busy_machine import EVENT_TIMEOUT_S


@pytest.fixture
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loaded machine may need long to rename a file or to set its times: it is not verified again for that.

    Nor are bytes of a stored blob released before all of it is verified, because that takes long.
    """
    monkeypatch.setattr("dockyard.cache.download.MAX_VERIFY_WAIT_S", EVENT_TIMEOUT_S)
    monkeypatch.setattr("dockyard.storage.verified_files.MAX_RENAME_NS", 10**10)
    monkeypatch.setattr("dockyard.storage.verified_files.MAX_SETTING_NS", 10**10)


@pytest.fixture
def hashed_bytes() -> Callable[[], float]:
    """How many bytes were hashed to verify stored blobs, since the last call."""
    before = 0.0

    def count() -> float:
        nonlocal before
        now = sum(
            sample.value
            for metric in metrics.verified_bytes.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
        )
        before, difference = now, now - before
        return difference

    count()
    return count
