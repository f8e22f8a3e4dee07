"""Fixtures of this package."""

from tests.support.deployment_fixtures import fake_registry, make_deployment

__all__ = ["fake_registry", "make_deployment"]
