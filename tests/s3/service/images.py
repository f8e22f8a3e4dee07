"""Pull whole images as their manifests describe them, and verify every byte; and create images to pull."""

import hashlib
import time

from tests.s3.service.bucket_view import BucketView, blob_key, manifest_key, named_by, tag_key
from tests.support.bodies import digest_of
from tests.support.deployment import Deployment, eventually
from tests.support.fake_registry import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, FakeRegistry, Image
from tests.support.http_client import StreamedResponse, send_request

ACCEPT = f"{OCI_INDEX}, {OCI_MANIFEST}, {DOCKER_LIST}, {DOCKER_MANIFEST}"
NAME = "up.test/team/app"
REPO = "team/app"
READ_BYTES = 256 * 1024
RESPONSE_TIMEOUT_S = 120.0


def pull(deployment: Deployment, reference: str, name: str = NAME) -> set[str]:
    """Pull an image by tag or digest with all that it names; return the keys of its objects in the bucket."""
    reply = send_request(
        deployment.address, f"/v2/{name}/manifests/{reference}", {"Accept": ACCEPT}, timeout_s=RESPONSE_TIMEOUT_S
    )
    assert reply.status == 200, f"{reference}: {reply.status} {reply.body!r}"
    assert reply.is_complete
    digest = digest_of(reply.body)
    assert reply.header("Docker-Content-Digest") == digest
    keys = {manifest_key(name, digest)}
    if ":" in reference:
        assert digest == reference
    else:
        keys.add(tag_key(name, reference))
    children, blobs = named_by(reply.body)
    for child in children:
        keys |= pull(deployment, child, name)
    for blob in blobs:
        fetch(deployment, blob, name)
        keys.add(blob_key(blob))
    return keys


def fetch(deployment: Deployment, digest: str, name: str = NAME) -> float:
    """Download and verify a blob; return the seconds that it took."""
    started_at = time.monotonic()
    with StreamedResponse(deployment.address, f"/v2/{name}/blobs/{digest}", timeout_s=RESPONSE_TIMEOUT_S) as download:
        download.head()
        assert download.status == 200, f"{digest}: {download.status}"
        algorithm, _, encoded = digest.partition(":")
        hasher = hashlib.new(algorithm)
        length = download.length
        assert length is not None
        while download.received < length:
            piece = download.read(min(READ_BYTES, length - download.received))
            assert piece, f"{digest} ended after {download.received} of {length} bytes"
            hasher.update(piece)
    assert hasher.hexdigest() == encoded, f"wrong bytes of {digest}"
    return time.monotonic() - started_at


def add_images(fake_registry: FakeRegistry, *tags: str, size: int = 100_000) -> list[Image]:
    """Add images without common layers, each with two layers."""
    return [
        fake_registry.add_image(REPO, tag, [layer(f"{tag} one", size), layer(f"{tag} two", 2 * size)]) for tag in tags
    ]


def add_index(fake_registry: FakeRegistry, tag: str) -> Image:
    """Add an index of images for two platforms with a common layer."""
    common = layer(f"{tag} common", 50_000)
    images = [
        fake_registry.add_image(REPO, f"{tag}-{platform}", [common, layer(f"{tag} {platform}", 70_000)])
        for platform in ("amd64", "arm64")
    ]
    return fake_registry.add_index(REPO, tag, images)


def layer(seed: str, size: int) -> bytes:
    """Return pseudo-random bytes that depend on the seed."""
    return hashlib.shake_128(seed.encode()).digest(size)


def pull_and_publish(deployment: Deployment, bucket_view: BucketView, *references: str) -> set[str]:
    """Pull images, and wait until all their objects are in the bucket; return their keys."""
    keys = set().union(*(pull(deployment, reference) for reference in references))
    eventually(lambda: keys <= bucket_view.listed(), "everything pulled is in the bucket")
    return keys


def put_image(bucket_view: BucketView, fake_registry: FakeRegistry, reference: str, days_ago: int = 0) -> set[str]:
    """Put an image of the registry into the bucket without Dockyard; return its keys."""
    body = fake_registry.manifest_body(REPO, reference)
    media_type = OCI_INDEX if b'"manifests"' in body else OCI_MANIFEST
    key = manifest_key(NAME, digest_of(body))
    bucket_view.put(key, body, media_type, days_ago=days_ago)
    keys = {key}
    if ":" not in reference:
        keys.add(tag_key(NAME, reference))
        bucket_view.put(tag_key(NAME, reference), digest_of(body).encode(), "text/plain", days_ago=days_ago)
    children, blobs = named_by(body)
    for child in children:
        keys |= put_image(bucket_view, fake_registry, child, days_ago)
    for blob in blobs:
        content = fake_registry._blobs[blob][0]
        keys.add(bucket_view.put_blob(b"".join(content.pieces(0, content.size)), days_ago=days_ago))
    return keys
