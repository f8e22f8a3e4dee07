"""What the tests under fault share."""

from tests.house_fixtures import make_house, origin

__all__ = ["make_house", "origin"]
