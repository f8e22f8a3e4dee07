"""Wrong bytes in the bucket: nobody gets them whole, and they are put right."""

from collections.abc import Callable

import pytest

from tests.s3.service.bucket_view import BucketView, blob_key, manifest_key, tag_key
from tests.s3.service.images import NAME, WITHIN_S, add_images, fetch, layer, pull, put_image
from tests.support.bodies import digest_of
from tests.support.deployment import Deployment, eventually
from tests.support.fake_registry import OCI_MANIFEST, FakeRegistry

SMALL, LARGE = 200_000, 4_000_000


def spoil(bucket_view: BucketView, body: bytes, how: str) -> str:
    """Put something else under a blob's key; the digest of the blob."""
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


def see_repaired(bucket_view: BucketView, body: bytes) -> None:
    """Wait until the bucket has the right bytes."""
    eventually(lambda: bucket_view.get(blob_key(digest_of(body))) == body, "the bucket is repaired", WITHIN_S)


DAMAGES = ["flipped at the start", "flipped at the end", "too short", "too long", "empty"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_small_blob_is_fetched_again(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry, how: str
) -> None:
    """A client gets the right bytes at once, and the bucket does too."""
    body = layer(how, SMALL)
    fake_registry.add_blob(body)
    digest = spoil(bucket_view, body, how)
    fetch(start(workers=1), digest)
    see_repaired(bucket_view, body)
    assert fake_registry.count("blob", "GET") == 1


@pytest.mark.parametrize("how", DAMAGES[:-1])
def test_a_damaged_large_blob_is_cut(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry, how: str
) -> None:
    """The first client sees a broken download, the next one gets it right, and so does the bucket."""
    body = layer(how, LARGE)
    fake_registry.add_blob(body)
    digest = spoil(bucket_view, body, how)
    deployment = start()
    first = deployment.get(f"/v2/{NAME}/blobs/{digest}")
    assert not first.is_complete or first.body == body
    eventually(lambda: deployment.get(f"/v2/{NAME}/blobs/{digest}").body == body, "a right download", WITHIN_S)
    see_repaired(bucket_view, body)


def test_an_empty_object_for_a_large_blob_is_fetched_again(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """Nothing where megabytes should be: right for the first client already."""
    body = layer("emptied", LARGE)
    fake_registry.add_blob(body)
    fetch(start(), spoil(bucket_view, body, "empty"))
    see_repaired(bucket_view, body)


def test_a_head_does_not_believe_an_empty_object(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """Nothing where a blob should be: HEAD tells the size that GET gives."""
    body = layer("emptied", SMALL)
    fake_registry.add_blob(body)
    digest = spoil(bucket_view, body, "empty")
    deployment = start()
    told = deployment.head(f"/v2/{NAME}/blobs/{digest}").header("Content-Length")
    fetch(deployment, digest)
    see_repaired(bucket_view, body)
    assert told == str(SMALL)


def test_the_empty_blob_is_no_damage(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """The blob of no bytes is served from the bucket."""
    bucket_view.put_blob(b"")
    reply = start().get(f"/v2/{NAME}/blobs/{digest_of(b'')}")
    assert (reply.status, reply.body, reply.header("Content-Length")) == (200, b"", "0")
    assert fake_registry.count("blob") == 0


@pytest.mark.parametrize("how", ["flipped at the start", "too short"])
def test_a_damaged_blob_is_never_served_for_want_of_an_upstream(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry, how: str
) -> None:
    """Upstream down: an error, and no complete download of wrong bytes; the bucket is repaired when it is back."""
    body = layer(how, SMALL)
    fake_registry.add_blob(body)
    digest = spoil(bucket_view, body, how)
    deployment = start()
    fake_registry.listener.close()
    assert deployment.get(f"/v2/{NAME}/blobs/{digest}").status in {502, 503, 504}
    fake_registry.listener.open()
    eventually(lambda: deployment.get(f"/v2/{NAME}/blobs/{digest}").body == body, "a right download", WITHIN_S)
    see_repaired(bucket_view, body)


@pytest.mark.parametrize("wrong", [b"", b"{}", b'{"schemaVersion":2}', b"\xff" * 100, b"x" * 5_000_000])
def test_a_damaged_manifest_is_fetched_again(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry, wrong: bytes
) -> None:
    """A manifest with other bytes than its digest's comes from the upstream, and the bucket is repaired."""
    (image,) = add_images(fake_registry, "v1")
    key = manifest_key(NAME, image.digest)
    bucket_view.put(key, wrong, OCI_MANIFEST)
    assert start().get(f"/v2/{NAME}/manifests/{image.digest}").body == image.body
    eventually(lambda: bucket_view.get(key) == image.body, "the bucket is repaired", WITHIN_S)


@pytest.mark.parametrize("text", [b"", b"nonsense", b"sha256:abc", b"\xff\xfe", b"x" * 100_000])
def test_a_damaged_pointer_is_written_again(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry, text: bytes
) -> None:
    """A pointer that is no digest is as good as none."""
    (image,) = add_images(fake_registry, "v1")
    bucket_view.put(tag_key(NAME, "v1"), text, "text/plain")
    assert start().get(f"/v2/{NAME}/manifests/v1").body == image.body
    eventually(
        lambda: bucket_view.get(tag_key(NAME, "v1")) == image.digest.encode(), "the bucket is repaired", WITHIN_S
    )


def test_a_pointer_to_nothing_is_asked_of_the_upstream(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """A pointer whose manifest has expired does not stand in the way."""
    (image,) = add_images(fake_registry, "v1")
    put_image(bucket_view, fake_registry, "v1")
    bucket_view.remove(manifest_key(NAME, image.digest))
    deployment = start()
    pull(deployment, "v1")
    eventually(lambda: manifest_key(NAME, image.digest) in bucket_view.listed(), "the manifest is back", WITHIN_S)
