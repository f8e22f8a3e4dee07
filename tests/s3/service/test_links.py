"""Links in the bucket: with restricted access, which blobs belong to a repository, for all replicas."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.s3.service.bucket_view import BucketView, blob_key, link_key, manifest_key, named_by
from tests.s3.service.images import NAME, REPO, add_images, add_index, fetch, pull, pull_and_publish, put_image
from tests.s3.service.request_log import S3RequestLog, object_key
from tests.s3.store.proxy import Forward, Request, Respond, S3Proxy, s3_error
from tests.support.bodies import digest_of
from tests.support.deployment import Deployment, eventually
from tests.support.fake_registry import FakeRegistry, Image

DAY_S = 86_400
RESTRICTED: dict[str, Any] = {"access": {"rules": [{"repositories": ["up.test/**"], "allow": True}]}}


def links_of(fake_registry: FakeRegistry, reference: str, name: str = NAME) -> set[str]:
    """The keys of the links of an image and of all that it names."""
    children, blobs = named_by(fake_registry.manifest_body(REPO, reference))
    links = {link_key(name, blob) for blob in blobs}
    return links.union(*(links_of(fake_registry, child, name) for child in children))


def is_link(key: str) -> bool:
    """Whether a key is that of a link."""
    return key.startswith("cache/links/")


def test_the_links_of_a_manifest_are_written_before_it(
    start: Callable[..., Deployment], bucket_view: BucketView, proxy: S3Proxy, fake_registry: FakeRegistry
) -> None:
    """A replica that finds a manifest finds its links. Each is written once."""
    add_index(fake_registry, "v1")
    pull_and_publish(start(proxy.host, **RESTRICTED), bucket_view, "v1")
    put = [object_key(each) for each in list(proxy.requests) if each.method == "PUT"]
    assert {key for key in put if is_link(key)} == links_of(fake_registry, "v1")
    for tag in ("v1-amd64", "v1-arm64"):
        manifest = manifest_key(NAME, digest_of(fake_registry.manifest_body(REPO, tag)))
        assert all(put.index(link) < put.index(manifest) for link in links_of(fake_registry, tag))
    assert {key for key in bucket_view.listed() if is_link(key)} == links_of(fake_registry, "v1")


def test_there_are_no_links_without_restricted_access(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """They would cost requests and be of no use."""
    add_index(fake_registry, "v1")
    pull_and_publish(start(), bucket_view, "v1")
    assert not any(is_link(key) for key in bucket_view.listed())


@pytest.mark.parametrize("has_links", [True, False], ids=["old links", "from before access was restricted"])
def test_a_touched_manifest_has_new_links(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry, *, has_links: bool
) -> None:
    """So that they do not expire before it does."""
    add_index(fake_registry, "v1")
    old_image = put_image(bucket_view, fake_registry, "v1", days_ago=30)
    links = links_of(fake_registry, "v1")
    for key in links if has_links else ():
        bucket_view.put(key, b"", days_ago=30)
    deployment = start(**RESTRICTED)

    def is_touched() -> bool:
        pull(deployment, "v1")  # again, because what failed is only tried again when it is used
        return links <= bucket_view.listed() and all(
            bucket_view.age(key).total_seconds() < DAY_S for key in links | old_image
        )

    eventually(is_touched, "all links are there, and everything is touched")


def test_a_manifest_is_not_published_while_its_links_cannot_be_written(
    start: Callable[..., Deployment], bucket_view: BucketView, proxy: S3Proxy, fake_registry: FakeRegistry
) -> None:
    """It stays in the outbox, and is published with its links when they can be written."""
    (image,) = add_images(fake_registry, "v1")
    key = manifest_key(NAME, image.digest)

    def refuse_one_link(request: Request) -> Forward | Respond:
        is_refused = request.method == "PUT" and object_key(request) == link_key(NAME, image.layers[-1])
        return s3_error(503, "ServiceUnavailable") if is_refused else Forward()

    deployment = start(proxy.host, **RESTRICTED)
    proxy.rule = refuse_one_link
    pull(deployment, "v1")
    eventually(lambda: proxy.counted()["PUT"] and link_key(NAME, image.config) in bucket_view.listed(), "links")
    eventually(lambda: {blob_key(digest) for digest in image.layers} <= bucket_view.listed(), "layers are published")
    assert key not in bucket_view.listed()
    assert any((deployment.dockyard.storage / "unpublished").iterdir())
    proxy.rule = lambda _: Forward()
    eventually(lambda: {key, *links_of(fake_registry, "v1")} <= bucket_view.listed(), "everything is published")
    eventually(lambda: not any((deployment.dockyard.storage / "unpublished").iterdir()), "the outbox is empty")


def test_a_common_base_is_linked_once(
    start: Callable[..., Deployment], bucket_view: BucketView, proxy: S3Proxy, fake_registry: FakeRegistry
) -> None:
    """For all images of a repository that are published within minutes."""
    base = b"base" * 1000
    for number in range(5):
        fake_registry.add_image(REPO, f"v{number}", [base, f"layer {number}".encode()])
    deployment = start(proxy.host, workers=1, **RESTRICTED)
    request_log = S3RequestLog(proxy)
    for number in range(5):
        pull_and_publish(deployment, bucket_view, f"v{number}")
    assert request_log.of(link_key(NAME, digest_of(base))) == ["PUT"]


def blob_path(digest: str, name: str = NAME) -> str:
    """The path of a blob."""
    return f"/v2/{name}/blobs/{digest}"


@pytest.fixture
def published(start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry) -> Image:
    """An image that one replica has pulled. The registry has its blobs in its repository only."""
    (image,) = add_images(fake_registry, "v1")
    for digest in (image.config, *image.layers):
        fake_registry.add_blob(fake_registry._blobs[digest][0], repos=[REPO])
    pull_and_publish(start(**RESTRICTED), bucket_view, "v1")
    fake_registry.clear_exchanges()
    return image


def test_a_replica_serves_blobs_of_a_manifest_that_only_another_has_served(
    start: Callable[..., Deployment], published: Image, proxy: S3Proxy, fake_registry: FakeRegistry
) -> None:
    """By the links in the bucket, also while the upstream is down; and under their own repository only."""
    replica = start(proxy.host, **RESTRICTED)
    other = "up.test/team/other"
    unknown = digest_of(b"nobody has this")
    for method in ("GET", "HEAD"):
        strange = replica.request(method, blob_path(published.layers[0], other))
        expected = replica.request(method, blob_path(unknown, other))
        assert (strange.status, strange.body) == (expected.status, expected.body)
        assert strange.status == 404
    fake_registry.clear_exchanges()
    fake_registry.listener.close()
    log = S3RequestLog(proxy)
    for digest in (published.config, *published.layers):
        fetch(replica, digest)
    fetch(replica, published.layers[0])
    for digest in published.layers:
        assert set(log.of(link_key(NAME, digest))) == {"HEAD"}
        assert len(log.of(link_key(NAME, digest))) <= 2, "once for each worker"
    assert fake_registry.count() == 0
    other = "up.test/team/third"  # that the other one does not have the blob is remembered for some seconds
    strange = replica.get(blob_path(published.layers[0], other))
    expected = replica.get(blob_path(unknown, other))
    assert (strange.status, strange.body) == (expected.status, expected.body)
    assert strange.status == 503


def test_a_replica_asks_the_upstream_while_the_bucket_fails(
    start: Callable[..., Deployment], published: Image, proxy: S3Proxy, fake_registry: FakeRegistry
) -> None:
    """The bucket cannot give access to anything then."""
    proxy.rule = lambda _: s3_error(503, "ServiceUnavailable")
    replica = start(proxy.host, **RESTRICTED)
    for digest in published.layers:
        fetch(replica, digest)
        assert fake_registry.count("blob", "HEAD", reference=digest) == 1
        assert replica.get(blob_path(digest, "up.test/team/other")).status == 404


def test_an_image_from_before_access_was_restricted_needs_the_upstream_or_a_touch(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """Its blobs have no links in the bucket yet. Who pulls the manifest needs none."""
    (image,) = add_images(fake_registry, "v1")
    put_image(bucket_view, fake_registry, "v1")
    replica = start(workers=1, **RESTRICTED)
    fetch(replica, image.layers[0])
    assert fake_registry.count("blob", "HEAD", reference=image.layers[0]) == 1
    assert fake_registry.count("blob", "GET") == 0
    fake_registry.listener.close()
    assert replica.get(blob_path(image.layers[1])).status == 503
    pull(replica, "v1")


def test_nobody_is_redirected_to_a_blob_of_another_repository(
    start: Callable[..., Deployment], published: Image, fake_registry: FakeRegistry
) -> None:
    """The URL would read the blob without a login."""
    replica = start(storage={"redirect": True}, **RESTRICTED)
    unknown = digest_of(b"nobody has this")
    for digest in (*published.layers, published.config):
        strange = replica.get(blob_path(digest, "up.test/team/other"))
        assert (strange.status, strange.body) == (404, replica.get(blob_path(unknown, "up.test/team/other")).body)
        assert strange.header("Location") is None
        redirected = replica.get(blob_path(digest))
        assert redirected.status == 307
        assert "X-Amz-Expires=60&" in (redirected.header("Location") or "")
