"""Real clients pull through Dockyard while the upstream is well."""

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
    """An image that nobody has pulled yet, in a repository of its own."""
    unique = f"{request.param}-{secrets.token_hex(4)}"
    pushed = KINDS[request.param](registry, f"library/{unique}", unique)
    registry.clear_requests()
    return pushed


def test_a_cold_pull_brings_what_was_pushed(
    method: PullMethod, image: PushedImage, registry: DistributionRegistry
) -> None:
    """The client has exactly the image that stands upstream, and each blob of it was fetched from there once."""
    assert method.pull(image) == method.expected(image)
    fetched = Counter(request.path for request in registry.requests() if request.method == "GET")
    needed = {f"/v2/{image.repository}/blobs/{blob}" for blob in method.expected(image) & image.blobs}
    assert needed <= fetched.keys()
    assert {path: times for path, times in fetched.items() if times > 1} == {}


def test_a_warm_pull_only_asks_whether_the_tag_has_moved(
    method: PullMethod, image: PushedImage, registry: DistributionRegistry
) -> None:
    """A client that has nothing yet pulls what another has pulled before, and no byte of it comes from upstream."""
    method.pull(image)
    method.wipe()
    registry.clear_requests()
    assert method.pull(image) == method.expected(image)
    assert {(request.method, request.target, request.status) for request in registry.requests()} == {
        ("HEAD", f"/v2/{image.repository}/manifests/{image.tag}", 200)
    }
