"""Failures at the command line."""

from pathlib import Path

import pytest

from tests.failures.conftest import Check
from tests.failures.pulls import COMMANDS, CommandFailure, observe
from tests.support.deployment import Deployment


@pytest.mark.parametrize("failure", COMMANDS, ids=lambda failure: failure.cause)
def test_the_line_of_a_command_that_fails(
    failure: CommandFailure, tmp_path: Path, module_deployment: Deployment, check: Check
) -> None:
    """A real `dockyard` command."""
    check(failure, observe(failure, tmp_path, module_deployment))
