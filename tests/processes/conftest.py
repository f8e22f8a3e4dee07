"""What the tests under fault share."""

from tests.support.deployment_fixtures import fake_registry, make_deployment

__all__ = ["fake_registry", "make_deployment"]
