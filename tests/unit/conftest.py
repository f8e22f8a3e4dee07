"""Fixtures that unit tests share."""

import pytest


@pytest.fixture
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loaded machine may need long to rename a file or to set its times: it is not verified again for that."""
    monkeypatch.setattr("dockyard.storage.verified_files.MAX_RENAME_NS", 10**10)
    monkeypatch.setattr("dockyard.storage.verified_files.MAX_SETTING_NS", 10**10)
