"""Objects that expire at any time, and interrupted responses of S3: they are misses, not errors."""

from collections.abc import Callable

from tests.s3.service.bucket_view import BucketView, blob_key
from tests.s3.service.images import NAME, add_images, fetch, layer, pull, put_image
from tests.s3.service.request_log import S3RequestLog
from tests.s3.store.proxy import Forward, Request, S3Proxy, s3_error
from tests.support.bodies import digest_of
from tests.support.deployment import Deployment, eventually
from tests.support.fake_registry import FakeRegistry

SIZE = 3_000_000


def test_an_expired_layer_of_an_image_is_downloaded(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """The pull downloads this layer from the upstream, and no other."""
    (image,) = add_images(fake_registry, "v1")
    keys = put_image(bucket_view, fake_registry, "v1")
    bucket_view.remove(blob_key(image.layers[0]))
    deployment = start()
    pull(deployment, "v1")
    assert [each.request.reference for each in fake_registry.received("blob")] == [image.layers[0]]
    eventually(lambda: bucket_view.listed() == keys, "the layer is published")


def test_an_interrupted_response_is_resumed_from_the_bucket(
    start: Callable[..., Deployment], bucket_view: BucketView, proxy: S3Proxy, fake_registry: FakeRegistry
) -> None:
    """The next GET has a Range and an If-Match header; the client gets one complete response."""
    body = layer("cut once", SIZE)
    bucket_view.put_blob(body)
    deployment = start(proxy.host)
    request_log = S3RequestLog(proxy)
    proxy.rule = lambda request: Forward(cut_response_after=SIZE // 2 if "range" not in request.headers else None)
    fetch(deployment, digest_of(body))
    first, second = (each for each in proxy.requests if each.method == "GET")
    assert "range" not in first.headers
    assert second.headers["range"].startswith("bytes=1")
    assert (
        second.headers["if-match"] == f'"{bucket_view.stat(blob_key(digest_of(body))).metadata["etag"].strip(chr(34))}"'
    )
    assert request_log.of(blob_key(digest_of(body))) == ["GET", "GET"]
    assert fake_registry.count() == 0


def test_a_response_that_is_interrupted_again_is_resumed_from_the_upstream(
    start: Callable[..., Deployment], bucket_view: BucketView, proxy: S3Proxy, fake_registry: FakeRegistry
) -> None:
    """All GETs are interrupted: the rest is fetched from the upstream with a Range."""
    body = layer("cut twice", SIZE)
    digest = fake_registry.add_blob(body)
    bucket_view.put_blob(body)
    deployment = start(proxy.host)
    proxy.rule = lambda _: Forward(cut_response_after=SIZE // 3)
    fetch(deployment, digest)
    (exchange,) = fake_registry.received("blob", "GET")
    assert (exchange.request.header("Range") or "").startswith("bytes=1")


def test_a_blob_that_is_replaced_while_it_is_read_is_not_mixed_up(
    start: Callable[..., Deployment], bucket_view: BucketView, proxy: S3Proxy, fake_registry: FakeRegistry
) -> None:
    """The GET is interrupted, and the object is replaced: its bytes do not get into the response."""
    body = layer("replaced", SIZE)
    digest = fake_registry.add_blob(body)
    key = bucket_view.put_blob(body)
    deployment = start(proxy.host)

    def replace(request: Request) -> Forward:
        if request.method == "GET" and "range" in request.headers:
            bucket_view.put(key, layer("another", SIZE))
        return Forward(
            cut_response_after=SIZE // 2 if request.method == "GET" and "range" not in request.headers else None
        )

    proxy.rule = replace
    fetch(deployment, digest)
    eventually(lambda: bucket_view.get(key) == body, "the blob is published")


def test_an_error_of_s3_is_not_a_missing_object(
    start: Callable[..., Deployment], bucket_view: BucketView, proxy: S3Proxy, fake_registry: FakeRegistry
) -> None:
    """S3 rejects all requests and the upstream is down: the status is 503, not 404."""
    (image,) = add_images(fake_registry, "v1")
    put_image(bucket_view, fake_registry, "v1")
    deployment = start(proxy.host)
    S3RequestLog(proxy)
    proxy.rule = lambda _: s3_error(503, "SlowDown")
    fake_registry.listener.close()
    for path in ("manifests/v1", f"manifests/{image.digest}", f"blobs/{image.config}"):
        reply = deployment.get(f"/v2/{NAME}/{path}")
        assert (reply.status, reply.header("Retry-After") is not None) == (503, True), path
