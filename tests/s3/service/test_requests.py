"""The number of requests to S3 for each operation, counted before a real server.

Without touches that are due:

| operation | requests |
|---|---|
| a blob or manifest by digest, or a tag, that is in the local store | none |
| a cold blob | GET (not found), PUT |
| a cold manifest by digest | GET (not found), PUT |
| a cold manifest by tag | GET of the pointer (not found), and as by digest; PUT of the pointer |
| a blob or manifest that is only in the bucket | GET |
| HEAD of a blob that is only in the bucket | HEAD |
"""

import time
from collections.abc import Callable

import pytest

from tests.s3.service.bucket_view import BucketView, blob_key, manifest_key, tag_key
from tests.s3.service.images import NAME, add_images, fetch, layer, pull, pull_and_publish, put_image
from tests.s3.service.request_log import S3RequestLog
from tests.s3.store.proxy import S3Proxy
from tests.support.deployment import Deployment, eventually
from tests.support.fake_registry import FakeRegistry, Image

QUIET_S = 1.0


def wait_until_quiet(request_log: S3RequestLog) -> None:
    """Wait until no request was received for a while."""
    seen = [-1, 0.0]

    def is_quiet() -> bool:
        total = request_log.counted().total()
        if total != seen[0]:
            seen[:] = [total, time.monotonic()]
        return time.monotonic() - seen[1] > QUIET_S

    eventually(is_quiet, "no more requests")


def test_a_warm_pull_takes_no_requests(
    start: Callable[..., Deployment], bucket_view: BucketView, proxy: S3Proxy, fake_registry: FakeRegistry
) -> None:
    """The second pull of an image by tag sends nothing to S3."""
    add_images(fake_registry, "v1")
    deployment = start(proxy.host)
    pull_and_publish(deployment, bucket_view, "v1")
    request_log = S3RequestLog(proxy)
    wait_until_quiet(request_log)
    request_log.clear()
    pull(deployment, "v1")
    wait_until_quiet(request_log)
    assert request_log.counted() == {}


def test_a_cold_blob_takes_a_get_and_a_put(
    start: Callable[..., Deployment], bucket_view: BucketView, proxy: S3Proxy, fake_registry: FakeRegistry
) -> None:
    """One GET that finds nothing, and one PUT."""
    digest = fake_registry.add_blob(layer("cold", 2_000_000))
    deployment = start(proxy.host)
    request_log = S3RequestLog(proxy)
    fetch(deployment, digest)
    eventually(lambda: bucket_view.listed() == {blob_key(digest)}, "the blob is published")
    wait_until_quiet(request_log)
    assert request_log.of(blob_key(digest)) == ["GET", "PUT"]
    assert request_log.counted() == {"GET": 1, "PUT": 1}


def test_a_cold_manifest_takes_a_get_and_a_put(
    start: Callable[..., Deployment], bucket_view: BucketView, proxy: S3Proxy, fake_registry: FakeRegistry
) -> None:
    """A manifest by digest: one GET that finds nothing, and one PUT."""
    (image,) = add_images(fake_registry, "v1")
    deployment = start(proxy.host)
    request_log = S3RequestLog(proxy)
    assert deployment.get(f"/v2/{NAME}/manifests/{image.digest}").status == 200
    eventually(bucket_view.listed, "the manifest is published")
    wait_until_quiet(request_log)
    assert request_log.counted() == {"GET": 1, "PUT": 1}


def test_a_cold_tag_takes_two_gets_and_two_puts(
    start: Callable[..., Deployment], bucket_view: BucketView, proxy: S3Proxy, fake_registry: FakeRegistry
) -> None:
    """The pointer and the manifest are read once and written once."""
    (image,) = add_images(fake_registry, "v1")
    deployment = start(proxy.host)
    request_log = S3RequestLog(proxy)
    assert deployment.get(f"/v2/{NAME}/manifests/v1").status == 200
    eventually(lambda: len(bucket_view.listed()) == 2, "manifest and pointer are published")
    wait_until_quiet(request_log)
    assert request_log.of(tag_key(NAME, "v1")) == ["GET", "PUT"]
    assert request_log.of(manifest_key(NAME, image.digest)) == ["GET", "PUT"]


def test_a_cold_image_takes_two_requests_for_each_object(
    start: Callable[..., Deployment], bucket_view: BucketView, proxy: S3Proxy, fake_registry: FakeRegistry
) -> None:
    """A whole pull by tag: a GET and a PUT for the pointer, the manifest, the config and each layer."""
    add_images(fake_registry, "v1")
    deployment = start(proxy.host)
    request_log = S3RequestLog(proxy)
    keys = pull_and_publish(deployment, bucket_view, "v1")
    wait_until_quiet(request_log)
    assert {key: request_log.of(key) for key in keys} == {key: ["GET", "PUT"] for key in keys}


def test_an_object_that_only_the_bucket_has_takes_one_get(
    start: Callable[..., Deployment], bucket_view: BucketView, proxy: S3Proxy, fake_registry: FakeRegistry
) -> None:
    """A pull of an image that another Dockyard published just before: one GET for each object, and no touch."""
    add_images(fake_registry, "v1")
    keys = put_image(bucket_view, fake_registry, "v1")
    deployment = start(proxy.host)
    request_log = S3RequestLog(proxy)
    assert pull(deployment, "v1") == keys
    wait_until_quiet(request_log)
    assert {key: request_log.of(key) for key in keys} == {key: ["GET"] for key in keys}


@pytest.mark.parametrize("is_in_bucket", [True, False], ids=["only in the bucket", "missing"])
def test_a_head_of_a_blob_takes_one_head(
    start: Callable[..., Deployment],
    bucket_view: BucketView,
    proxy: S3Proxy,
    fake_registry: FakeRegistry,
    *,
    is_in_bucket: bool,
) -> None:
    """A HEAD of a blob sends one HEAD to the bucket, and neither downloads nor touches the blob."""
    body = layer("head", 100_000)
    digest = fake_registry.add_blob(body)
    if is_in_bucket:
        bucket_view.put_blob(body)
    deployment = start(proxy.host)
    request_log = S3RequestLog(proxy)
    assert deployment.head(f"/v2/{NAME}/blobs/{digest}").header("Content-Length") == "100000"
    wait_until_quiet(request_log)
    assert request_log.of(blob_key(digest)) == ["HEAD"]


def test_concurrent_pulls_take_no_more_requests(
    start: Callable[..., Deployment], bucket_view: BucketView, proxy: S3Proxy, fake_registry: FakeRegistry
) -> None:
    """Forty concurrent pulls of a layer at two workers: one GET and one PUT."""
    image: Image = add_images(fake_registry, "v1")[0]
    deployment = start(proxy.host)
    request_log = S3RequestLog(proxy)
    replies = deployment.get_concurrently([f"/v2/{NAME}/blobs/{image.layers[1]}"] * 40)
    assert {(reply.status, len(reply.body)) for reply in replies} == {(200, 200_000)}
    eventually(bucket_view.listed, "the blob is published")
    wait_until_quiet(request_log)
    assert request_log.of(blob_key(image.layers[1])) == ["GET", "PUT"]
