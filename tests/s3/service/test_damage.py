"""Damaged objects in the bucket: they are not served as complete responses, and they are repaired."""

from collections.abc import Callable

import pytest

from tests.s3.service.bucket_view import BucketView, blob_key, manifest_key, tag_key
from tests.s3.service.images import NAME, add_images, fetch, layer, pull, put_image
from tests.support.bodies import digest_of
from tests.support.deployment import Deployment, eventually
from tests.support.fake_registry import OCI_MANIFEST, FakeRegistry

SMALL, LARGE = 200_000, 4_000_000


def damage(bucket_view: BucketView, body: bytes, how: str) -> str:
    """Put wrong bytes under the key of a blob; return its digest."""
    wrong = {
        "flipped at the start": bytes([body[0] ^ 1]) + body[1:],
        "flipped at the end": body[:-1] + bytes([body[-1] ^ 1]),
        "too short": body[: len(body) // 2],
        "too long": body + b"more",
        "empty": b"",
    }[how]
    digest = digest_of(body)
    bucket_view.put(blob_key(digest), wrong)
    return digest


def assert_repaired(bucket_view: BucketView, body: bytes) -> None:
    """Wait until the bucket has the right bytes."""
    eventually(lambda: bucket_view.get(blob_key(digest_of(body))) == body, "the bucket is repaired")


DAMAGES = ["flipped at the start", "flipped at the end", "too short", "too long", "empty"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_small_blob_is_downloaded_again(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry, how: str
) -> None:
    """The first client gets the right bytes, and the bucket is repaired."""
    body = layer(how, SMALL)
    fake_registry.add_blob(body)
    digest = damage(bucket_view, body, how)
    fetch(start(workers=1), digest)
    assert_repaired(bucket_view, body)
    assert fake_registry.count("blob", "GET") == 1


@pytest.mark.parametrize("how", DAMAGES[:-1])
def test_a_damaged_large_blob_breaks_one_download(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry, how: str
) -> None:
    """The first client gets an incomplete response, the next one the right bytes, and the bucket is repaired."""
    body = layer(how, LARGE)
    fake_registry.add_blob(body)
    digest = damage(bucket_view, body, how)
    deployment = start()
    first = deployment.get(f"/v2/{NAME}/blobs/{digest}")
    assert not first.is_complete or first.body == body
    eventually(lambda: deployment.get(f"/v2/{NAME}/blobs/{digest}").body == body, "a download with the right bytes")
    assert_repaired(bucket_view, body)


def test_an_empty_object_of_a_large_blob_is_downloaded_again(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """The first client gets the right bytes already."""
    body = layer("emptied", LARGE)
    fake_registry.add_blob(body)
    fetch(start(), damage(bucket_view, body, "empty"))
    assert_repaired(bucket_view, body)


def test_a_head_ignores_an_empty_object(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """HEAD responds with the same size as GET."""
    body = layer("emptied", SMALL)
    fake_registry.add_blob(body)
    digest = damage(bucket_view, body, "empty")
    deployment = start()
    content_length = deployment.head(f"/v2/{NAME}/blobs/{digest}").header("Content-Length")
    fetch(deployment, digest)
    assert_repaired(bucket_view, body)
    assert content_length == str(SMALL)


def test_the_empty_blob_is_not_damaged(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """The blob of zero bytes is served from the bucket."""
    bucket_view.put_blob(b"")
    reply = start().get(f"/v2/{NAME}/blobs/{digest_of(b'')}")
    assert (reply.status, reply.body, reply.header("Content-Length")) == (200, b"", "0")
    assert fake_registry.count("blob") == 0


@pytest.mark.parametrize("how", ["flipped at the start", "too short"])
def test_a_damaged_blob_is_not_served_while_the_upstream_is_down(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry, how: str
) -> None:
    """The response is an error; the bucket is repaired when the upstream is up again."""
    body = layer(how, SMALL)
    fake_registry.add_blob(body)
    digest = damage(bucket_view, body, how)
    deployment = start()
    fake_registry.listener.close()
    assert deployment.get(f"/v2/{NAME}/blobs/{digest}").status in {502, 503, 504}
    fake_registry.listener.open()
    eventually(lambda: deployment.get(f"/v2/{NAME}/blobs/{digest}").body == body, "a download with the right bytes")
    assert_repaired(bucket_view, body)


@pytest.mark.parametrize("wrong", [b"", b"{}", b'{"schemaVersion":2}', b"\xff" * 100, b"x" * 5_000_000])
def test_a_damaged_manifest_is_downloaded_again(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry, wrong: bytes
) -> None:
    """A manifest with a wrong digest is fetched from the upstream, and the bucket is repaired."""
    (image,) = add_images(fake_registry, "v1")
    key = manifest_key(NAME, image.digest)
    bucket_view.put(key, wrong, OCI_MANIFEST)
    assert start().get(f"/v2/{NAME}/manifests/{image.digest}").body == image.body
    eventually(lambda: bucket_view.get(key) == image.body, "the bucket is repaired")


@pytest.mark.parametrize("text", [b"", b"nonsense", b"sha256:abc", b"\xff\xfe", b"x" * 100_000])
def test_a_damaged_pointer_is_written_again(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry, text: bytes
) -> None:
    """A pointer that is not a digest is treated as absent."""
    (image,) = add_images(fake_registry, "v1")
    bucket_view.put(tag_key(NAME, "v1"), text, "text/plain")
    assert start().get(f"/v2/{NAME}/manifests/v1").body == image.body
    eventually(lambda: bucket_view.get(tag_key(NAME, "v1")) == image.digest.encode(), "the bucket is repaired")


def test_a_pointer_to_a_missing_manifest_is_no_error(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """The manifest has expired: it is fetched from the upstream and published again."""
    (image,) = add_images(fake_registry, "v1")
    put_image(bucket_view, fake_registry, "v1")
    bucket_view.remove(manifest_key(NAME, image.digest))
    deployment = start()
    pull(deployment, "v1")
    eventually(lambda: manifest_key(NAME, image.digest) in bucket_view.listed(), "the manifest is back")
