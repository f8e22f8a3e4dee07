"""Touches: objects of images that are pulled do not expire in the bucket.

`tests/chaos/load/test_load_touch.py` shows that a thousand hits cause one copy of each object.
"""

import os
import time
from collections.abc import Callable, Iterable

import pytest

from tests.s3.service.bucket_view import BucketView, blob_key
from tests.s3.service.images import NAME, add_images, add_index, fetch, layer, pull, pull_and_publish, put_image
from tests.s3.service.request_log import S3RequestLog
from tests.s3.store.proxy import Forward, Request, S3Proxy, s3_error
from tests.support.bodies import digest_of
from tests.support.deployment import Deployment, eventually, stays
from tests.support.fake_registry import FakeRegistry

DAY_S = 86_400
QUIET_S = 1.5


@pytest.fixture
def old_image(bucket_view: BucketView, fake_registry: FakeRegistry) -> set[str]:
    """An index with its images, thirty days old in the bucket; its keys."""
    add_index(fake_registry, "v1")
    return put_image(bucket_view, fake_registry, "v1", days_ago=30)


def assert_touched(bucket_view: BucketView, keys: Iterable[str]) -> None:
    """Wait until all these objects have been touched."""
    old = set(keys)

    def are_touched() -> bool:
        old.difference_update({key for key in old if bucket_view.age(key).total_seconds() < DAY_S})
        return not old

    try:
        eventually(are_touched, "touched")
    except AssertionError:
        pytest.fail(f"not touched: {sorted(old)}")


def test_a_partly_pulled_image_is_touched_completely(
    start: Callable[..., Deployment], bucket_view: BucketView, old_image: set[str], fake_registry: FakeRegistry
) -> None:
    """A client that has all layers requests one manifest only: its config and layers are touched too."""
    manifest = fake_registry.manifest_body("team/app", "v1-arm64")
    deployment = start()
    assert deployment.get(f"/v2/{NAME}/manifests/{digest_of(manifest)}").body == manifest
    document = deployment.get(f"/v2/{NAME}/manifests/{digest_of(manifest)}").json
    parts = [blob_key(part["digest"]) for part in (document["config"], *document["layers"])]
    assert set(parts) < old_image
    assert_touched(bucket_view, parts)


def test_a_touch_keeps_the_metadata(start: Callable[..., Deployment], bucket_view: BucketView) -> None:
    """The Content-Type and the metadata that another program set are kept."""
    body = layer("metadata", 10_000)
    key = bucket_view.put_blob(body, days_ago=30, content_type="application/vnd.other", origin="another tool")
    fetch(start(), digest_of(body))
    assert_touched(bucket_view, [key])
    found = bucket_view.stat(key)
    assert (found.content_type, found.metadata["x-amz-meta-origin"]) == ("application/vnd.other", "another tool")


def test_what_a_power_failure_has_emptied_in_the_outbox_is_published_by_a_touch(
    start: Callable[..., Deployment], bucket_view: BucketView, proxy: S3Proxy, fake_registry: FakeRegistry
) -> None:
    """S3 fails, an image is pulled, and the files of the outbox are empty after the restart: it is in use, and due."""
    add_images(fake_registry, "v1")
    deployment = start(proxy.host, storage={"touch_threshold": "1s"})
    proxy.rule = lambda _: s3_error(503, "SlowDown")
    keys = pull(deployment, "v1")
    deployment.dockyard.kill()
    emptied = list(deployment.dockyard.storage.glob("unpublished/*"))
    assert len(emptied) == len(keys)
    for file in emptied:
        os.truncate(file, 0)
    proxy.rule = lambda _: Forward()
    deployment.dockyard.start()
    fake_registry.clear_exchanges()
    eventually(lambda: pull(deployment, "v1") == bucket_view.listed(), "everything pulled is in the bucket")
    assert fake_registry.count("blob") == 0


def test_a_threshold_of_zero_disables_touches(
    start: Callable[..., Deployment],
    bucket_view: BucketView,
    proxy: S3Proxy,
    old_image: set[str],
    fake_registry: FakeRegistry,
) -> None:
    """`touch_threshold: 0`: an old image is served, and S3 gets GETs only."""
    deployment = start(proxy.host, storage={"touch_threshold": "0"})
    request_log = S3RequestLog(proxy)
    for _ in range(3):
        pull(deployment, "v1")
    stays(lambda: set(request_log.counted()) <= {"GET"}, "GETs only", QUIET_S)


def test_a_new_image_is_not_touched(
    start: Callable[..., Deployment], bucket_view: BucketView, proxy: S3Proxy, fake_registry: FakeRegistry
) -> None:
    """Objects that were just written are not touched, whichever program wrote them."""
    add_index(fake_registry, "v1")
    put_image(bucket_view, fake_registry, "v1", days_ago=0)
    deployment = start(proxy.host)
    request_log = S3RequestLog(proxy)
    for _ in range(3):
        pull(deployment, "v1")
    stays(lambda: set(request_log.counted()) <= {"GET"}, "GETs only", QUIET_S)


def test_an_image_that_is_pulled_repeatedly_does_not_age(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """With a threshold of two seconds, the pulls renew the LastModified of every object of an image."""
    add_index(fake_registry, "v1")
    deployment = start(storage={"touch_threshold": "2s"})
    keys = pull_and_publish(deployment, bucket_view, "v1")
    first = {key: bucket_view.stat(key).modified for key in keys}

    def have_moved() -> bool:
        pull(deployment, "v1")
        return all((bucket_view.stat(key).modified - first[key]).total_seconds() > 2 for key in keys)

    eventually(have_moved, "every object is newer")


def test_an_image_in_the_local_store_is_touched_after_two_days(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """With a threshold of 24 h, a pull after two days touches manifests, blobs and the pointer."""
    add_index(fake_registry, "v1")
    deployment = start()
    keys = pull_and_publish(deployment, bucket_view, "v1")
    deployment.dockyard.stop()
    bucket_view.age_all(days=2)
    for path in (*deployment.dockyard.storage.glob("cache/**/*"), *deployment.dockyard.storage.glob("run/touched/*")):
        if path.is_file():
            os.utime(path, (time.time() - 2 * DAY_S,) * 2)  # as if two days had passed
    deployment.dockyard.start()
    pull(deployment, "v1")
    assert_touched(bucket_view, keys)


def test_deleted_objects_are_published_again(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """Objects that the bucket lost are uploaded from the local store when they are due for a touch."""
    add_images(fake_registry, "v1")
    deployment = start(storage={"touch_threshold": "2s"})
    keys = pull_and_publish(deployment, bucket_view, "v1")
    contents = {key: bucket_view.get(key) for key in keys}
    for key in keys:
        bucket_view.remove(key)
    fake_registry.clear_exchanges()
    eventually(lambda: pull(deployment, "v1") and bucket_view.listed() == keys, "all objects are published again")
    assert {key: bucket_view.get(key) for key in keys} == contents
    assert fake_registry.count("blob") == 0


def test_an_object_that_is_deleted_before_its_copy_is_published_again(
    start: Callable[..., Deployment], bucket_view: BucketView, proxy: S3Proxy, fake_registry: FakeRegistry
) -> None:
    """It is deleted between the HEAD and the copy of a touch: this is no error, and it is uploaded again."""
    digest = fake_registry.add_blob(layer("deleted", 50_000))
    deployment = start(proxy.host, storage={"touch_threshold": "2s"})
    fetch(deployment, digest)
    eventually(lambda: bucket_view.listed() == {blob_key(digest)}, "the blob is published")
    removed = []

    def delete(request: Request) -> Forward:
        if request.operation == "PUT copy" and not removed:
            removed.append(request)
            bucket_view.remove(blob_key(digest))
        return Forward()

    proxy.rule = delete
    eventually(lambda: fetch(deployment, digest) and removed, "a touch")
    eventually(
        lambda: fetch(deployment, digest) and bucket_view.listed() == {blob_key(digest)},
        "the blob is published again",
        30.0,
    )
