"""What the tests under fault share."""

from tests.support.deployment_fixtures import make_deployment, origin

__all__ = ["make_deployment", "origin"]
