"""Fixtures of this package."""

from tests.support.deployment_fixtures import module_deployment

__all__ = ["module_deployment"]
