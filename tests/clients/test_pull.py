"""Real clients pull through Dockyard while the upstream is available."""

import secrets
from collections import Counter

import pytest

from tests.clients.conftest import KINDS
from tests.clients.pull_methods import PullMethod
from tests.support.distribution import DistributionRegistry
from tests.support.images import PushedImage

pytestmark = pytest.mark.clients


@pytest.fixture(params=KINDS.keys())
def image(request: pytest.FixtureRequest, registry: DistributionRegistry) -> PushedImage:
    """An image that no client has pulled yet, in a repository of its own."""
    unique = f"{request.param}-{secrets.token_hex(4)}"
    pushed = KINDS[request.param](registry, f"library/{unique}", unique)
    registry.clear_requests()
    return pushed


def test_a_cold_pull_returns_the_pushed_image(
    method: PullMethod, image: PushedImage, registry: DistributionRegistry
) -> None:
    """The client has exactly the image of the upstream, and each blob was fetched from there once."""
    assert method.pull(image) == method.expected(image)
    fetched = Counter(request.path for request in registry.requests() if request.method == "GET")
    needed = {f"/v2/{image.repository}/blobs/{blob}" for blob in method.expected(image) & image.blobs}
    assert needed <= fetched.keys()
    assert {path: times for path, times in fetched.items() if times > 1} == {}


def test_a_cached_pull_only_checks_the_tag(
    method: PullMethod, image: PushedImage, registry: DistributionRegistry
) -> None:
    """A client without images pulls what another client has pulled, and the upstream sends no content."""
    method.pull(image)
    method.wipe()
    registry.clear_requests()
    assert method.pull(image) == method.expected(image)
    assert {(request.method, request.target, request.status) for request in registry.requests()} == {
        ("HEAD", f"/v2/{image.repository}/manifests/{image.tag}", 200)
    }
