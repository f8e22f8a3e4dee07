"""What the cases share: a deployment per module while nothing is wrong, and fresh ones for what spoils them."""

from collections.abc import Iterator

import pytest

from tests.support.deployment import Deployment, open_deployment
from tests.support.deployment_fixtures import fake_registry, make_deployment
from tests.support.fake_registry import FakeRegistry

__all__ = ["deployment", "fake_registry", "make_deployment"]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Give a deployment with one worker; its tests use names of their own and leave the upstream well."""
    with (
        FakeRegistry() as fake_registry,
        open_deployment(fake_registry, tmp_path_factory.mktemp("deployment")) as deployment,
    ):
        yield deployment
