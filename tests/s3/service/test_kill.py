"""kill -9 of everything: nothing wrong is in the bucket, and what was pulled is there in the end."""

import threading
from collections.abc import Callable
from contextlib import ExitStack

from tests.s3.service.bucket_view import BucketView, blob_key
from tests.s3.service.images import NAME, add_images, fetch, layer, pull
from tests.s3.store.proxy import Forward, S3Proxy, s3_error
from tests.support import faults
from tests.support.deployment import Deployment, eventually, set_at_exit
from tests.support.fake_registry import FakeRegistry

MIB = 1024 * 1024
BACK_WITHIN_S = 60.0
FILLS = 20


def test_a_kill_during_twenty_fills(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """Supervisor and workers die with twenty layers half way up: none of them is in the bucket, and then all are."""
    digests = [fake_registry.add_blob(layer(f"fill {number}", 3 * MIB)) for number in range(FILLS)]
    deployment = start()
    with set_at_exit(threading.Event()) as go_on, ExitStack() as stack:
        stalled = fake_registry.on("blob", faults.stalled(0.6, go_on))
        for digest in digests:
            download = stack.enter_context(deployment.stream(f"/v2/{NAME}/blobs/{digest}")).head()
            assert len(download.read(MIB)) == MIB
        deployment.dockyard.kill()
        fake_registry.remove_rules(stalled)
    assert bucket_view.audit() == []
    assert bucket_view.listed() == set()
    deployment.dockyard.start()
    for digest in digests:
        fetch(deployment, digest)
    eventually(lambda: bucket_view.listed() == {blob_key(digest) for digest in digests}, "all are there", BACK_WITHIN_S)


def test_what_was_pulled_before_a_kill_is_published_after_it(
    start: Callable[..., Deployment], bucket_view: BucketView, proxy: S3Proxy, fake_registry: FakeRegistry
) -> None:
    """S3 takes nothing, five images are pulled, everything dies: after a restart the bucket has them, unasked."""
    tags = [f"v{number}" for number in range(5)]
    add_images(fake_registry, *tags)
    deployment = start(proxy.host)
    proxy.rule = lambda _: s3_error(503, "SlowDown")
    keys = set().union(*(pull(deployment, tag) for tag in tags))
    deployment.dockyard.kill()
    assert bucket_view.listed() == set()
    proxy.rule = lambda _: Forward()
    deployment.dockyard.start()
    fake_registry.clear_exchanges()
    eventually(lambda: bucket_view.listed() == keys, "everything pulled is in the bucket", BACK_WITHIN_S)
    assert fake_registry.count() == 0


def test_a_kill_at_the_last_byte(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """A pull ends and everything dies at once, five times over: all of it is in the bucket in the end."""
    keys: set[str] = set()
    tags = [f"v{number}" for number in range(5)]
    add_images(fake_registry, *tags, size=1_500_000)
    deployment = start()
    for tag in tags:
        keys |= pull(deployment, tag)
        deployment.dockyard.kill()
        assert bucket_view.audit() == []
        deployment.dockyard.start()
    eventually(lambda: bucket_view.listed() == keys, "everything pulled is in the bucket", BACK_WITHIN_S)
