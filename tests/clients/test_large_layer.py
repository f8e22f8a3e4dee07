"""A layer of 256 MiB, pulled through Dockyard by real clients."""

import pytest

from tests.support.distribution import DistributionRegistry
from tests.support.dockyard import Dockyard
from tests.support.image_clients import Crane, DockerDaemon, Skopeo
from tests.support.images import push_large

pytestmark = pytest.mark.clients

LAYER_BYTES = 1 << 28


def test_a_large_layer_is_fetched_once_for_all_clients(
    dockyard: Dockyard, registry: DistributionRegistry, skopeo: Skopeo, crane: Crane, docker: DockerDaemon
) -> None:
    """One client pulls it cold, one cached, and one with the upstream stopped; the upstream sends it once."""
    image = push_large(registry, "library/large", "large", LAYER_BYTES)
    reference = f"{dockyard.host}/docker.io/{image.repository}:{image.tag}"
    registry.clear_requests()

    assert skopeo.pull(reference).digests == image.blobs | {image.digest}
    assert crane.pull(reference).digests == image.blobs | {image.digest}
    with registry.stopped():
        docker.pull(reference)
        assert docker.digest(reference) == image.digest

    (layer,) = image.this_platform.layers
    sent = sum(
        request.sent for request in registry.requests() if layer.digest in request.path and request.method == "GET"
    )
    assert layer.size <= sent <= 1.02 * layer.size
    for tidied in (skopeo, crane, docker):
        tidied.wipe()
