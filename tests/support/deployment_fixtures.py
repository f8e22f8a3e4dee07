"""Fixtures: a fake registry, and Dockyard servers in front of it."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.deployment import Deployment, open_deployment
from tests.support.fake_registry import FakeRegistry


@pytest.fixture
def fake_registry() -> Iterator[FakeRegistry]:
    """A fake registry with one listener."""
    with FakeRegistry() as fake_registry:
        yield fake_registry


@pytest.fixture(scope="module")
def module_deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment with one worker for the tests of a module, and a fake registry of its own.

    It is patient: on a busy machine, a check that takes too long would make the tags of the tests that follow stale.
    """
    limits = {"check_timeout": f"{EVENT_TIMEOUT_S}s", "connect_timeout": f"{EVENT_TIMEOUT_S}s"}
    with (
        FakeRegistry() as fake_registry,
        open_deployment(fake_registry, tmp_path_factory.mktemp("deployment"), upstream=limits) as deployment,
    ):
        yield deployment


@pytest.fixture
def make_deployment(fake_registry: FakeRegistry, tmp_path: Path) -> Iterator[Callable[..., Deployment]]:
    """Start a Dockyard for this test; the arguments override the settings of `open_deployment`."""
    with ExitStack() as deployments:

        def start(**settings: Any) -> Deployment:
            directory = tmp_path / f"deployment-{len(list(tmp_path.glob('deployment-*')))}"
            deployments.callback(shutil.rmtree, directory / "storage", ignore_errors=True)  # up to gigabytes
            return deployments.enter_context(open_deployment(fake_registry, directory, **settings))

        yield start
