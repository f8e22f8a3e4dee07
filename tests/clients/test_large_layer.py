"""A layer of 1 GiB, through Dockyard, to real clients."""

import pytest

from tests.support.dockyard import Dockyard
from tests.support.image_clients import Crane, DockerDaemon, Skopeo
from tests.support.images import push_large
from tests.support.registry import Registry

pytestmark = [pytest.mark.clients, pytest.mark.timeout(240)]  # 4 GiB written by three clients

GIB = 1 << 30


def test_a_large_layer_crosses_once_for_all_clients(
    dockyard: Dockyard, registry: Registry, skopeo: Skopeo, crane: Crane, docker: DockerDaemon
) -> None:
    """One client pulls it cold, one warm, and one with the upstream stopped; upstream sent it once."""
    image = push_large(registry, "library/large", "large", GIB)
    reference = f"{dockyard.host}/docker.io/{image.repository}:{image.tag}"
    registry.forget_requests()

    assert skopeo.pull(reference).digests == image.blobs | {image.digest}
    assert crane.pull(reference).digests == image.blobs | {image.digest}
    with registry.stopped():
        docker.pull(reference)
        assert docker.digest(reference) == image.digest

    (layer,) = image.ours.layers
    sent = [(request.method, request.sent) for request in registry.requests() if layer.digest in request.path]
    assert [entry for entry in sent if entry[0] == "GET"] == [("GET", layer.size)]
    for tidied in (skopeo, crane, docker):
        tidied.wipe()
