"""Fixtures: one deployment per module for tests that change nothing, and new ones for the others."""

from collections.abc import Iterator

import pytest

from tests.support.deployment import Deployment, open_deployment
from tests.support.deployment_fixtures import fake_registry, make_deployment
from tests.support.fake_registry import FakeRegistry

__all__ = ["deployment", "fake_registry", "make_deployment"]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment with one worker; its tests use names of their own and leave the upstream without faults."""
    with (
        FakeRegistry() as fake_registry,
        open_deployment(fake_registry, tmp_path_factory.mktemp("deployment")) as deployment,
    ):
        yield deployment
