"""Fixtures: an upstream with images."""

from tests.support.deployment_fixtures import fake_registry

__all__ = ["fake_registry"]
