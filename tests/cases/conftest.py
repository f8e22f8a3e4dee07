"""Fixtures of this package."""

import itertools
from collections.abc import Iterator

import pytest

from tests.support.deployment import Deployment, open_deployment
from tests.support.deployment_fixtures import fake_registry, make_deployment
from tests.support.fake_registry import FakeRegistry

__all__ = ["deployment", "fake_registry", "make_deployment", "name"]

_numbers = itertools.count()


@pytest.fixture
def name() -> str:
    """The name of a repository that no other test uses, so that nothing of it is cached."""
    return f"org/app{next(_numbers)}"


@pytest.fixture(scope="module")
def module_deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment for the tests of a module."""
    with (
        FakeRegistry() as fake_registry,
        open_deployment(fake_registry, tmp_path_factory.mktemp("deployment")) as deployment,
    ):
        yield deployment


@pytest.fixture
def deployment(module_deployment: Deployment) -> Deployment:
    """The deployment of the module, whose upstream has no faults: for tests that use names of their own."""
    module_deployment.fake_registry.remove_rules()
    module_deployment.fake_registry.clear_exchanges()
    return module_deployment
