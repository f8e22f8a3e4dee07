"""Failures of the port, the host and the directory."""

import os
from pathlib import Path

import pytest

from tests.failures import serving, start
from tests.failures.conftest import Check
from tests.failures.serving import SERVING, ServingFailure
from tests.failures.start import DISKS, PORTS, StartFailure
from tests.support.programs import cannot_run


def _require_root(failure: StartFailure | ServingFailure) -> None:
    if failure.needs_root and os.geteuid() != 0:
        cannot_run("a small file system needs root")


@pytest.mark.parametrize("failure", [*PORTS, *DISKS], ids=lambda failure: failure.cause)
def test_the_line_of_a_failed_start(failure: StartFailure, tmp_path: Path, check: Check) -> None:
    """A real `dockyard server`, which ends, or goes on with a warning."""
    _require_root(failure)
    check(failure, start.observe(failure, tmp_path))


@pytest.mark.parametrize("failure", SERVING, ids=lambda failure: failure.cause)
def test_the_line_of_a_failure_while_the_server_runs(failure: ServingFailure, tmp_path: Path, check: Check) -> None:
    """Pulls continue, and the log has the line."""
    _require_root(failure)
    check(failure, serving.observe(failure, tmp_path))
