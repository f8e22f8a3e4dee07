"""Several Dockyards over one bucket, and a bucket that another program filled."""

import shutil
from collections.abc import Callable

import pytest

from tests.s3.service.bucket_view import BLOB_TYPE, BucketView, is_missing, manifest_key, tag_key
from tests.s3.service.images import (
    NAME,
    REPO,
    add_images,
    add_index,
    fetch,
    layer,
    pull,
    pull_and_publish,
    put_image,
)
from tests.s3.service.request_log import object_key
from tests.s3.store.proxy import Forward, Request, S3Proxy
from tests.support.bodies import digest_of
from tests.support.deployment import Deployment, eventually
from tests.support.fake_registry import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, FakeRegistry
from tests.support.faults import replaced
from tests.support.schema1 import SCHEMA1_SIGNED, sign


def test_an_image_pulled_by_one_is_served_by_another(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """A second Dockyard serves an image by digest without a request to the upstream."""
    index = add_index(fake_registry, "v1")
    pull_and_publish(start(), bucket_view, "v1")
    second = start()
    fake_registry.clear_exchanges()
    pull(second, index.digest)
    assert fake_registry.count() == 0


def test_a_tag_pulled_by_another_takes_one_head(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """A second Dockyard checks the tag at the upstream, and fetches nothing else."""
    add_index(fake_registry, "v1")
    pull_and_publish(start(), bucket_view, "v1")
    second = start()
    fake_registry.clear_exchanges()
    pull(second, "v1")
    assert [(each.request.method, each.request.reference) for each in fake_registry.received()] == [("HEAD", "v1")]


def test_a_deleted_directory_is_filled_from_the_bucket(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """A Dockyard that lost its directory serves everything without the upstream."""
    index = add_index(fake_registry, "v1")
    deployment = start()
    pull_and_publish(deployment, bucket_view, "v1")
    deployment.dockyard.stop()
    shutil.rmtree(deployment.dockyard.storage)
    deployment.dockyard.start()
    fake_registry.clear_exchanges()
    pull(deployment, index.digest)
    assert fake_registry.count() == 0


def test_another_serves_while_the_upstream_is_down(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """A second Dockyard serves digests, and a tag by the pointer in the bucket, marked as stale."""
    index = add_index(fake_registry, "v1")
    pull_and_publish(start(), bucket_view, "v1")
    second = start()
    fake_registry.listener.close()
    pull(second, index.digest)
    pull(second, "v1")
    assert "could not be asked" in (second.get(f"/v2/{NAME}/manifests/v1").header("Warning") or "")


def test_another_dockyard_sends_the_type_that_the_upstream_said(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """For a manifest whose bytes do not have the type: it is the Content-Type of the object, also in the directory."""
    body = b'{"schemaVersion": 2, "config": {}, "layers": []}'
    digest = fake_registry.add_manifest(REPO, "v1", body, DOCKER_MANIFEST)
    key, path = manifest_key(NAME, digest), f"/v2/{NAME}/manifests/{digest}"
    assert start().get(path).header("Content-Type") == DOCKER_MANIFEST
    eventually(lambda: key in bucket_view.listed(), "the manifest is published")
    assert bucket_view.stat(key).content_type == DOCKER_MANIFEST
    fake_registry.clear_exchanges()
    second = start()
    for _ in range(2):
        assert {second.get(path).header("Content-Type") for _ in range(8)} == {DOCKER_MANIFEST}
        second.dockyard.stop()
        bucket_view.put(key, body, "binary/octet-stream")
        second.dockyard.start()
    assert fake_registry.count() == 0


@pytest.mark.parametrize(
    "content_type", ["binary/octet-stream", "application/octet-stream", OCI_INDEX, "application/xml"]
)
def test_another_type_in_the_bucket_is_ignored(
    start: Callable[..., Deployment], bucket_view: BucketView, content_type: str
) -> None:
    """Other programs do not set it: the type is that of the bytes, or the one of OCI."""
    for body, media_type in (
        (b'{"schemaVersion": 2, "config": {}, "layers": []}', OCI_MANIFEST),
        (
            b'{"schemaVersion": 2, "config": {}, "layers": [], "mediaType": "%s"}' % DOCKER_MANIFEST.encode(),
            DOCKER_MANIFEST,
        ),
    ):
        digest = digest_of(body)
        bucket_view.put(manifest_key(NAME, digest), body, content_type)
        deployment = start()
        response = deployment.get(f"/v2/{NAME}/manifests/{digest}")
        assert (response.status, response.body, response.header("Content-Type")) == (200, body, media_type)


def test_a_signed_manifest_is_published_and_read_again(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """Its object has the digest of the payload in its key."""
    signed = sign()
    response = replaced(200, signed.body, ("Content-Type", SCHEMA1_SIGNED), ("Docker-Content-Digest", signed.digest))
    fake_registry.on("manifest", response, repo=REPO)
    path = f"/v2/{NAME}/manifests/{signed.digest}"
    assert start().get(path).body == signed.body
    key = manifest_key(NAME, signed.digest)
    eventually(lambda: key in bucket_view.listed(), "the manifest is published")
    fake_registry.clear_exchanges()
    found = start().get(path)
    assert (found.status, found.body, found.header("Content-Type")) == (200, signed.body, SCHEMA1_SIGNED)
    assert fake_registry.count() == 0


def test_objects_have_the_documented_keys(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """After a pull the bucket has the manifest, the pointer and the blobs under the documented keys, and no others."""
    (image,) = add_images(fake_registry, "v1")
    deployment = start()
    pull(deployment, "v1")
    wanted = {
        f"cache/manifests/up.test/team/app/sha256/{image.digest[7:]}": (image.body, OCI_MANIFEST),
        "cache/manifests/up.test/team/app/tags/v1": (image.digest.encode(), "text/plain"),
    }
    for digest in (image.config, *image.layers):
        wanted[f"cache/blobs/sha256/{digest[7:9]}/{digest[7:]}"] = (b"", BLOB_TYPE)
    eventually(lambda: bucket_view.listed() == set(wanted), "the bucket has exactly these keys")
    for key, (body, content_type) in wanted.items():
        assert bucket_view.stat(key).content_type == content_type, key
        assert not body or bucket_view.get(key) == body, key


def test_keys_contain_the_full_name_of_a_docker_hub_repository(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """The repository `alpine` is `docker.io/library/alpine` in the bucket."""
    fake_registry.add_image("library/alpine", "latest", [b"rootfs"])
    deployment = start()
    pull(deployment, "latest", "alpine")
    eventually(lambda: "cache/manifests/docker.io/library/alpine/tags/latest" in bucket_view.listed(), "the pointer")


def test_the_key_of_a_sha512_blob_contains_the_algorithm(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """The component `sha256` is `sha512`; the blob is uploaded in parts, and no upload is unfinished."""
    body = layer("sha512", 3_000_000)
    digest = fake_registry.add_blob(body, algorithm="sha512")
    fetch(start(), digest)
    eventually(lambda: bucket_view.listed() == {f"cache/blobs/sha512/{digest[7:9]}/{digest[7:]}"}, "the blob")


@pytest.mark.parametrize("newline", ["", "\n"])
def test_a_bucket_of_another_program_is_served(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry, newline: str
) -> None:
    """Objects that were written by plain PUTs are served while the upstream is down."""
    index = add_index(fake_registry, "v1")
    put_image(bucket_view, fake_registry, "v1")
    bucket_view.put(tag_key(NAME, "v1"), (index.digest + newline).encode(), "text/plain")
    fake_registry.listener.close()
    deployment = start()
    pull(deployment, "v1")
    assert deployment.get(f"/v2/{NAME}/manifests/v1").header("Content-Type") == OCI_INDEX


def test_a_moved_tag_moves_in_the_bucket(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """The pointer in the bucket is moved after the new manifest was uploaded."""
    old, new = add_images(fake_registry, "v1", "v2")
    deployment = start()
    pull_and_publish(deployment, bucket_view, "v1")
    assert bucket_view.get(tag_key(NAME, "v1")) == old.digest.encode()
    fake_registry.add_manifest(REPO, "v1", new.body, new.media_type)
    pull(deployment, "v1")
    eventually(lambda: bucket_view.get(tag_key(NAME, "v1")) == new.digest.encode(), "the pointer moves")
    assert manifest_key(NAME, new.digest) in bucket_view.listed()


def test_a_tag_that_moves_while_its_pointer_is_written_is_written_again(
    start: Callable[..., Deployment], bucket_view: BucketView, proxy: S3Proxy, fake_registry: FakeRegistry
) -> None:
    """A delayed write does not replace a pointer that another worker has published meanwhile."""
    _, new = add_images(fake_registry, "v1", "v2")
    deployment = start(proxy.host)
    pointer = deployment.dockyard.storage / tag_key(NAME, "v1")
    moved = []

    def move(request: Request) -> Forward:
        if request.method == "PUT" and object_key(request) == tag_key(NAME, "v1") and not moved:
            moved.append(request)
            pointer.write_text(new.digest)
        return Forward()

    proxy.rule = move
    pull(deployment, "v1")
    key = tag_key(NAME, "v1")
    eventually(
        lambda: moved and not is_missing(bucket_view, key) and bucket_view.get(key) == new.digest.encode(),
        "the pointer has the newer digest",
    )
    assert len(moved) == 1


def test_an_outage_of_the_upstream_does_not_move_a_pointer_back(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """A Dockyard with an older digest serves it as stale, and does not change the newer pointer in the bucket."""
    _, new = add_images(fake_registry, "v1", "v2")
    first, second = start(storage={"touch_threshold": "1s"}), start(storage={"touch_threshold": "1s"})
    pull_and_publish(first, bucket_view, "v1")
    fake_registry.add_manifest(REPO, "v1", new.body, new.media_type)
    pull_and_publish(second, bucket_view, "v1")
    eventually(lambda: bucket_view.get(tag_key(NAME, "v1")) == new.digest.encode(), "the pointer moves")
    moved_at = bucket_view.stat(tag_key(NAME, "v1")).modified
    fake_registry.listener.close()

    def is_touched() -> bool:
        pull(first, "v1")
        return bucket_view.stat(tag_key(NAME, "v1")).modified > moved_at

    eventually(is_touched, "the pointer is touched")
    assert bucket_view.get(tag_key(NAME, "v1")) == new.digest.encode()
