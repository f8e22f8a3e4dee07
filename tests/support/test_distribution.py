"""The distribution registry as an upstream of the tests: pushes, request log, stop and start."""

import hashlib
import http.client
import io
import tarfile

import pytest

from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.distribution import DistributionRegistry, LoggedRequest
from tests.support.images import push_docker, push_index, push_large
from tests.support.processes import SetupError
from tests.support.pull_image import pull_and_verify


def get(registry: DistributionRegistry, target: str) -> bytes:
    """One request as a client would send it."""
    connection = http.client.HTTPConnection("127.0.0.1", registry.port, timeout=EVENT_TIMEOUT_S)
    connection.request("GET", target)
    body = connection.getresponse().read()
    connection.close()
    return body


@pytest.mark.parametrize("push", [push_index, push_docker])
def test_a_pushed_image_can_be_pulled(registry: DistributionRegistry, push: type) -> None:
    """Every digest that a push returns is what the registry serves."""
    image = push(registry, f"tests/{push.__name__}", "whole")
    pull_and_verify(registry.port, image.repository, image)


def test_the_registry_lists_its_requests(registry: DistributionRegistry) -> None:
    """Requests since `clear_requests` are listed; those of the tests themselves are not."""
    image = push_docker(registry, "tests/counted", "counted")
    get(registry, "/v2/tests/counted/manifests/latest")
    registry.clear_requests()
    get(registry, f"/v2/tests/counted/manifests/{image.digest}?ns=x")
    get(registry, "/v2/tests/counted/manifests/nosuch")
    first, second = registry.requests()
    assert first == LoggedRequest(
        "GET", f"/v2/tests/counted/manifests/{image.digest}?ns=x", 200, image.this_platform.size
    )
    assert first.path == f"/v2/tests/counted/manifests/{image.digest}"
    assert (second.path, second.status) == ("/v2/tests/counted/manifests/nosuch", 404)


def test_a_stopped_registry_refuses_and_comes_back_with_its_content(registry: DistributionRegistry) -> None:
    """It keeps its port, its content, and the request log."""
    image = push_docker(registry, "tests/stopped", "stopped")
    registry.clear_requests()
    with registry.stopped(), pytest.raises(ConnectionRefusedError):
        get(registry, "/v2/")
    pull_and_verify(registry.port, image.repository, image)
    assert len(registry.requests()) == len({"tag"} | image.manifests | image.blobs)


def test_a_large_layer_is_a_tar_of_distinct_pages(registry: DistributionRegistry) -> None:
    """A client can unpack it, and misplaced bytes would be detected."""
    image = push_large(registry, "tests/large", "large", 5_000_000)
    (layer,) = image.this_platform.layers
    data = get(registry, f"/v2/tests/large/blobs/{layer.digest}")
    assert f"sha256:{hashlib.sha256(data).hexdigest()}" == layer.digest
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        file = tar.extractfile("large.bin")
        assert file is not None
        content = file.read()
    assert len(content) == 5_000_000
    pages = [content[start : start + 4096] for start in range(0, len(content), 4096)]
    assert len(set(pages)) == len(pages)


def test_a_rejected_push_raises(registry: DistributionRegistry) -> None:
    """A failed setup raises an error at once."""
    with pytest.raises(SetupError, match="DIGEST_INVALID"):
        registry.put_blob("tests/refused", f"sha256:{'0' * 64}", b"other bytes")
