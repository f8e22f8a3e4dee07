"""Sizes of blobs: HEAD requests are joined, and a body that does not tell its size is sent while it arrives."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import faults
from tests.support.deployment import Deployment, set_at_exit
from tests.support.fake_registry import Change, FakeRegistry

MIB = 1024 * 1024
SIZE = 6 * MIB
HEADS = 100

Start = Callable[..., Deployment]


@pytest.mark.parametrize("workers", [1, 3])
def test_many_heads_of_a_cold_blob_are_one_request(
    make_deployment: Start, fake_registry: FakeRegistry, workers: int
) -> None:
    """Over all workers; the size is remembered for a moment, and no download is started."""
    digest = fake_registry.add_blob(os.urandom(SIZE))
    is_over = threading.Event()
    fake_registry.on("blob", faults.silent(is_over))
    deployment = make_deployment(workers=workers)
    deployment.wait_for_workers(workers)
    path = f"/v2/up.test/app/blobs/{digest}"
    with ThreadPoolExecutor(HEADS) as pool, set_at_exit(is_over):
        waiting = [pool.submit(deployment.head, path) for _ in range(HEADS)]
        fake_registry.wait_for(lambda: fake_registry.count("blob") > 0, "the upstream is asked")
        is_over.set()
        responses = [each.result() for each in waiting]
    responses.append(deployment.head(path))
    assert {(each.status, each.header("Content-Length")) for each in responses} == {(200, str(SIZE))}
    assert [each.request.method for each in fake_registry.received("blob")] == ["HEAD"]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    "size_from",
    [["HEAD"], ["manifest"]],
    ids=["HEAD", "manifest"],
)
@pytest.mark.parametrize("framing", [faults.chunked(), faults.close_delimited()], ids=["chunked", "close-delimited"])
def test_a_layer_that_does_not_tell_its_size_is_sent_while_it_arrives(
    make_deployment: Start, fake_registry: FakeRegistry, workers: int, size_from: Sequence[str], framing: Change
) -> None:
    """Half of it is read before the upstream sends the other half."""
    layer = os.urandom(SIZE)
    image = fake_registry.add_image("app", "v1", [layer])
    is_over = threading.Event()
    fake_registry.on("blob", framing, method="GET")
    fake_registry.on("blob", faults.stalled(SIZE // 2, is_over), method="GET")
    if "HEAD" not in size_from:
        fake_registry.on("blob", faults.error_response(503), method="HEAD")
    deployment = make_deployment(workers=workers)
    if "manifest" in size_from:
        assert deployment.get("/v2/up.test/app/manifests/v1").status == 200
    with set_at_exit(is_over), deployment.stream(f"/v2/up.test/app/blobs/{image.layers[0]}") as download:
        download.head()
        assert (download.status, download.length) == (200, SIZE)
        begin = download.read(SIZE // 2 - MIB)
        is_over.set()
        rest, ended = download.rest()
    assert (begin + rest == layer, ended) == (True, "length")
    assert fake_registry.count("blob", "GET") == 1
    assert fake_registry.count("blob", "HEAD") == (1 if "HEAD" in size_from else 0)


def test_a_layer_whose_size_nobody_knows_is_sent_when_it_is_here(
    make_deployment: Start, fake_registry: FakeRegistry
) -> None:
    """It is whole, and has its length."""
    layer = os.urandom(SIZE)
    digest = fake_registry.add_blob(layer)
    fake_registry.on("blob", faults.chunked())
    fake_registry.on("blob", faults.ignoring_range())
    deployment = make_deployment()
    response = deployment.get(f"/v2/up.test/app/blobs/{digest}")
    assert (response.status, response.body, response.is_complete) == (200, layer, True)


@pytest.mark.parametrize("wrong_by", [-MIB, MIB])
def test_a_wrong_size_never_completes(make_deployment: Start, fake_registry: FakeRegistry, wrong_by: int) -> None:
    """The response with the wrong length ends early; the blob itself is right, and served from then on."""
    layer = os.urandom(SIZE)
    digest = fake_registry.add_blob(layer)
    fake_registry.on("blob", faults.wrong_length(wrong_by), method="HEAD")
    fake_registry.on("blob", faults.chunked(), method="GET")
    deployment = make_deployment()
    path = f"/v2/up.test/app/blobs/{digest}"
    first = deployment.get(path)
    assert (first.status, first.header("Content-Length")) == (200, str(SIZE + wrong_by))
    assert not first.is_complete
    second = deployment.get(path)
    assert (second.status, second.body, second.is_complete) == (200, layer, True)
    assert fake_registry.count("blob", "GET") == 1
