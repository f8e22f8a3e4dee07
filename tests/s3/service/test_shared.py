"""Many Dockyards over one bucket, and the bucket as the original has it."""

import shutil
from collections.abc import Callable

import pytest

from tests.s3.service.bucket_view import BLOB_TYPE, BucketView, is_missing, manifest_key, tag_key
from tests.s3.service.images import NAME, REPO, WITHIN_S, add_images, add_index, fetch, fill, layer, pull, put_image
from tests.s3.service.request_log import object_key
from tests.s3.store.proxy import Forward, Request, S3Proxy
from tests.support.deployment import Deployment, eventually
from tests.support.fake_registry import OCI_INDEX, OCI_MANIFEST, FakeRegistry


def test_what_one_fetched_the_other_serves(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """A second Dockyard has an image by digest without one request to the upstream."""
    index = add_index(fake_registry, "v1")
    fill(start(), bucket_view, "v1")
    second = start()
    fake_registry.clear_exchanges()
    pull(second, index.digest)
    assert fake_registry.count() == 0


def test_a_tag_that_the_other_fetched_costs_one_head(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """A second Dockyard asks whether the tag still holds, and nothing else."""
    add_index(fake_registry, "v1")
    fill(start(), bucket_view, "v1")
    second = start()
    fake_registry.clear_exchanges()
    pull(second, "v1")
    assert [(each.request.method, each.request.reference) for each in fake_registry.received()] == [("HEAD", "v1")]


def test_a_wiped_directory_is_filled_from_the_bucket(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """A Dockyard that lost its disk has everything again without the upstream."""
    index = add_index(fake_registry, "v1")
    deployment = start()
    fill(deployment, bucket_view, "v1")
    deployment.dockyard.stop()
    shutil.rmtree(deployment.dockyard.storage)
    deployment.dockyard.start()
    fake_registry.clear_exchanges()
    pull(deployment, index.digest)
    assert fake_registry.count() == 0


def test_the_other_serves_while_the_upstream_is_down(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """A second Dockyard serves by digest, and a tag by the bucket's pointer, marked stale."""
    index = add_index(fake_registry, "v1")
    fill(start(), bucket_view, "v1")
    second = start()
    fake_registry.listener.close()
    pull(second, index.digest)
    pull(second, "v1")
    assert "could not be asked" in (second.get(f"/v2/{NAME}/manifests/v1").header("Warning") or "")


def test_the_keys_are_the_originals(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """After a pull the bucket has the manifests, the pointer and the blobs under the keys of the seed, no others."""
    (image,) = add_images(fake_registry, "v1")
    deployment = start()
    pull(deployment, "v1")
    wanted = {
        f"cache/manifests/up.test/team/app/sha256/{image.digest[7:]}": (image.body, OCI_MANIFEST),
        "cache/manifests/up.test/team/app/tags/v1": (image.digest.encode(), "text/plain"),
    }
    for digest in (image.config, *image.layers):
        wanted[f"cache/blobs/sha256/{digest[7:9]}/{digest[7:]}"] = (b"", BLOB_TYPE)
    eventually(lambda: bucket_view.listed() == set(wanted), "exactly these keys", WITHIN_S)
    for key, (body, content_type) in wanted.items():
        assert bucket_view.stat(key).content_type == content_type, key
        assert not body or bucket_view.get(key) == body, key


def test_a_name_of_the_hub_has_its_whole_name_in_the_keys(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """`alpine` is `docker.io/library/alpine` in the bucket, as the original writes it."""
    fake_registry.add_image("library/alpine", "latest", [b"rootfs"])
    deployment = start()
    pull(deployment, "latest", "alpine")
    eventually(
        lambda: "cache/manifests/docker.io/library/alpine/tags/latest" in bucket_view.listed(), "the pointer", WITHIN_S
    )


def test_a_sha512_blob_has_its_algorithm_in_its_key(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """The place of `sha256` in the key is the algorithm's; the blob goes up in parts and none is left over."""
    body = layer("sha512", 3_000_000)
    digest = fake_registry.add_blob(body, algorithm="sha512")
    fetch(start(), digest)
    eventually(lambda: bucket_view.listed() == {f"cache/blobs/sha512/{digest[7:9]}/{digest[7:]}"}, "the blob", WITHIN_S)


@pytest.mark.parametrize("newline", ["", "\n"])
def test_a_bucket_of_the_original_is_served(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry, newline: str
) -> None:
    """What was put there by plain PUTs is served as it stands, the upstream being gone."""
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
    """The pointer of the bucket follows the upstream, after the new manifest."""
    old, new = add_images(fake_registry, "v1", "v2")
    deployment = start()
    fill(deployment, bucket_view, "v1")
    assert bucket_view.get(tag_key(NAME, "v1")) == old.digest.encode()
    fake_registry.add_manifest(REPO, "v1", new.body, new.media_type)
    pull(deployment, "v1")
    eventually(lambda: bucket_view.get(tag_key(NAME, "v1")) == new.digest.encode(), "the pointer moves", WITHIN_S)
    assert manifest_key(NAME, new.digest) in bucket_view.listed()


def test_a_tag_that_moves_while_its_pointer_is_written_is_written_again(
    start: Callable[..., Deployment], bucket_view: BucketView, proxy: S3Proxy, fake_registry: FakeRegistry
) -> None:
    """What another worker published meanwhile is not undone by a write that was held up."""
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
        "the newer one",
        WITHIN_S,
    )
    assert len(moved) == 1


def test_an_outage_of_the_upstream_does_not_move_a_pointer_back(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """A Dockyard that knows an older digest serves it stale, and leaves the newer pointer in the bucket alone."""
    _, new = add_images(fake_registry, "v1", "v2")
    first, second = start(storage={"touch_threshold": "1s"}), start(storage={"touch_threshold": "1s"})
    fill(first, bucket_view, "v1")
    fake_registry.add_manifest(REPO, "v1", new.body, new.media_type)
    fill(second, bucket_view, "v1")
    eventually(lambda: bucket_view.get(tag_key(NAME, "v1")) == new.digest.encode(), "the pointer moves", WITHIN_S)
    moved_at = bucket_view.stat(tag_key(NAME, "v1")).modified
    fake_registry.listener.close()

    def is_touched() -> bool:
        pull(first, "v1")
        return bucket_view.stat(tag_key(NAME, "v1")).modified > moved_at

    eventually(is_touched, "the pointer is touched", WITHIN_S)
    assert bucket_view.get(tag_key(NAME, "v1")) == new.digest.encode()
