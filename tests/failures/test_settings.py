"""Mistakes in the settings."""

from pathlib import Path

import pytest

from tests.failures.conftest import Check
from tests.failures.settings import SETTINGS, SettingsFailure, observe


@pytest.mark.parametrize("failure", SETTINGS, ids=lambda failure: failure.cause)
def test_the_line_of_a_mistake_in_the_settings(failure: SettingsFailure, tmp_path: Path, check: Check) -> None:
    """A real `dockyard server` with these settings."""
    check(failure, observe(failure, tmp_path))
