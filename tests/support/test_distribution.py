"""The rig itself: what it says of the real registry is so."""

import hashlib
import http.client
import io
import tarfile

import pytest

from tests.support.distribution import DistributionRegistry, LoggedRequest
from tests.support.images import push_docker, push_index, push_large
from tests.support.processes import SetupError
from tests.support.pull_image import pull_and_verify


def get(registry: DistributionRegistry, target: str) -> bytes:
    """One request as a client would send it."""
    connection = http.client.HTTPConnection("127.0.0.1", registry.port, timeout=10)
    connection.request("GET", target)
    body = connection.getresponse().read()
    connection.close()
    return body


@pytest.mark.parametrize("push", [push_index, push_docker])
def test_a_pushed_image_can_be_read_whole(registry: DistributionRegistry, push: type) -> None:
    """Every digest that the rig names is what the registry serves."""
    image = push(registry, f"rig/{push.__name__}", "whole")
    pull_and_verify(registry.port, image.repository, image)


def test_the_registry_tells_what_reached_it(registry: DistributionRegistry) -> None:
    """Requests count from where they were forgotten; the rig's own do not."""
    image = push_docker(registry, "rig/counted", "counted")
    get(registry, "/v2/rig/counted/manifests/latest")
    registry.clear_requests()
    get(registry, f"/v2/rig/counted/manifests/{image.digest}?ns=x")
    get(registry, "/v2/rig/counted/manifests/nosuch")
    first, second = registry.requests()
    assert first == LoggedRequest(
        "GET", f"/v2/rig/counted/manifests/{image.digest}?ns=x", 200, image.this_platform.size
    )
    assert first.path == f"/v2/rig/counted/manifests/{image.digest}"
    assert (second.path, second.status) == ("/v2/rig/counted/manifests/nosuch", 404)


def test_a_stopped_registry_refuses_and_comes_back_with_its_content(registry: DistributionRegistry) -> None:
    """It keeps its port, its content, and the count."""
    image = push_docker(registry, "rig/stopped", "stopped")
    registry.clear_requests()
    with registry.stopped(), pytest.raises(ConnectionRefusedError):
        get(registry, "/v2/")
    pull_and_verify(registry.port, image.repository, image)
    assert len(registry.requests()) == len({"tag"} | image.manifests | image.blobs)


def test_a_large_layer_is_a_tar_of_pages_that_all_differ(registry: DistributionRegistry) -> None:
    """A client can unpack it, and bytes put in a wrong place would be seen."""
    image = push_large(registry, "rig/large", "large", 5_000_000)
    (layer,) = image.this_platform.layers
    data = get(registry, f"/v2/rig/large/blobs/{layer.digest}")
    assert f"sha256:{hashlib.sha256(data).hexdigest()}" == layer.digest
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        file = tar.extractfile("large.bin")
        assert file is not None
        content = file.read()
    assert len(content) == 5_000_000
    pages = [content[start : start + 4096] for start in range(0, len(content), 4096)]
    assert len(set(pages)) == len(pages)


def test_a_push_that_is_refused_says_so(registry: DistributionRegistry) -> None:
    """A test that could not set its scene fails there, not later."""
    with pytest.raises(SetupError, match="DIGEST_INVALID"):
        registry.put_blob("rig/refused", f"sha256:{'0' * 64}", b"other bytes")
