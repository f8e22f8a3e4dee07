"""Fixtures of this package."""

import pytest

from tests.support.busy_machine import EVENT_TIMEOUT_S


@pytest.fixture(autouse=True)
def patient_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take no worker for frozen because the machine is busy; a test with a frozen one sets a time of its own.

    The workers here share one process, so that whether one of them uses processor time does not tell anything.
    """
    monkeypatch.setattr("dockyard.workers.peers.ACKNOWLEDGE_TIMEOUT_S", EVENT_TIMEOUT_S)
