"""Fixtures of this package."""

import itertools

import pytest

from tests.support.deployment import Deployment
from tests.support.deployment_fixtures import fake_registry, make_deployment, module_deployment

__all__ = ["deployment", "fake_registry", "make_deployment", "module_deployment", "name"]

_numbers = itertools.count()


@pytest.fixture
def name() -> str:
    """The name of a repository that no other test uses, so that nothing of it is cached."""
    return f"org/app{next(_numbers)}"


@pytest.fixture
def deployment(module_deployment: Deployment) -> Deployment:
    """The deployment of the module, whose upstream has no faults: for tests that use names of their own."""
    module_deployment.fake_registry.remove_rules()
    module_deployment.fake_registry.clear_exchanges()
    return module_deployment
