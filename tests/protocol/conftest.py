"""What the cases share: a deployment per module while nothing is wrong, and fresh ones for what spoils them."""

from collections.abc import Iterator

import pytest

from tests.support.deployment import Deployment, open_deployment
from tests.support.deployment_fixtures import make_deployment, origin
from tests.support.fake_registry import FakeRegistry

__all__ = ["deployment", "make_deployment", "origin"]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Give a deployment with one worker; its tests use names of their own and leave the upstream well."""
    with FakeRegistry() as origin, open_deployment(origin, tmp_path_factory.mktemp("deployment")) as deployment:
        yield deployment
