"""A bucket that cannot be used: the log names the mistake and the setting, and pulls work without the bucket."""

from collections.abc import Callable

import pytest

from tests.s3.service.bucket_view import BucketView, is_missing
from tests.s3.service.images import add_images, pull
from tests.s3.service.request_log import object_key
from tests.s3.store.proxy import Forward, S3Proxy, s3_error
from tests.s3.store.servers import SECRET_KEY, Server
from tests.support.deployment import Deployment, eventually
from tests.support.fake_registry import FakeRegistry


def assert_logged(deployment: Deployment, *words: str) -> None:
    """Wait for a line of the log that contains all these words."""
    eventually(
        lambda: any(all(word in line for word in words) for line in deployment.dockyard.read_log().splitlines()),
        f"{words} in the log",
    )
    assert SECRET_KEY not in deployment.dockyard.read_log()


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        ({"bucket": "no-such-bucket"}, ("bucket no-such-bucket does not exist", "storage.bucket")),
        ({"secret_key": "wrong-secret"}, ("rejects the secret key", "storage.secret_key")),
        ({"access_key": "nobody-at-all"}, ("rejects the access key", "storage.access_key")),
    ],
    ids=["no bucket", "wrong secret key", "wrong access key"],
)
def test_a_wrong_setting_is_logged(
    start: Callable[..., Deployment],
    bucket_view: BucketView,
    fake_registry: FakeRegistry,
    storage: dict[str, str],
    words: tuple[str, ...],
) -> None:
    """The mistake is in the log with the setting to change; a cold and a warm pull work."""
    add_images(fake_registry, "v1")
    deployment = start(storage=storage)
    assert_logged(deployment, *words)
    pull(deployment, "v1")
    pull(deployment, "v1")
    assert bucket_view.listed() == set()


def test_an_access_key_without_permission_to_list(
    start: Callable[..., Deployment], bucket_view: BucketView, proxy: S3Proxy, fake_registry: FakeRegistry
) -> None:
    """Without ListBucket, AWS S3 denies access to missing objects. This is logged, and everything pulled is published.

    MinIO responds that they are missing, so the proxy responds as AWS does.
    """
    add_images(fake_registry, "v1")
    proxy.rule = lambda request: (
        s3_error(403, "AccessDenied")
        if request.method != "PUT" and is_missing(bucket_view, object_key(request))
        else Forward()
    )
    deployment = start(proxy.host)
    assert_logged(deployment, "s3:ListBucket", bucket_view.bucket)
    keys = pull(deployment, "v1")
    eventually(lambda: bucket_view.listed() == keys, "everything pulled is in the bucket")


def test_an_access_key_without_permission_to_write(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """The missing permission PutObject is logged, and pulls work."""
    add_images(fake_registry, "v1")
    deployment = start(storage=bucket_view.add_login("s3:GetObject", "s3:ListBucket"))
    assert_logged(deployment, "s3:PutObject", bucket_view.bucket)
    pull(deployment, "v1")
    assert bucket_view.listed() == set()


def test_a_service_that_starts_later(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry, minio: Server
) -> None:
    """Dockyard starts before S3: this is logged, pulls work, and images are published when S3 has started."""
    add_images(fake_registry, "v1")
    minio.stop()
    try:
        deployment = start()
        assert_logged(deployment, "cannot connect to S3", "storage.endpoint")
        keys = pull(deployment, "v1")
    finally:
        minio.start()
    eventually(lambda: bucket_view.listed() == keys, "everything pulled is in the bucket")


def test_a_bucket_that_is_created_later(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry, minio: Server
) -> None:
    """The bucket is created after the first pull: it is used without a restart."""
    add_images(fake_registry, "v1")
    late = BucketView(minio)
    deployment = start(storage={"bucket": late.bucket})
    keys = pull(deployment, "v1")
    late.make()
    eventually(lambda: late.listed() == keys, "everything pulled is in the bucket")
    assert late.audit() == []
    late.close()


def test_a_wrong_clock(start: Callable[..., Deployment], proxy: S3Proxy, fake_registry: FakeRegistry) -> None:
    """S3 rejects the signatures because of their time: the log names the clock."""
    add_images(fake_registry, "v1")
    proxy.rule = lambda _: s3_error(403, "RequestTimeTooSkewed")
    deployment = start(proxy.host)
    assert_logged(deployment, "clock")
    pull(deployment, "v1")
    proxy.rule = lambda _: Forward()
