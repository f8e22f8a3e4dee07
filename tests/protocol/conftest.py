"""Fixtures: one deployment per module for tests that change nothing, and new ones for the others."""

import pytest

from tests.support.deployment import Deployment
from tests.support.deployment_fixtures import fake_registry, make_deployment, module_deployment

__all__ = ["deployment", "fake_registry", "make_deployment", "module_deployment"]


@pytest.fixture(scope="module")
def deployment(module_deployment: Deployment) -> Deployment:
    """A deployment with one worker; its tests use names of their own and leave the upstream without faults."""
    return module_deployment
