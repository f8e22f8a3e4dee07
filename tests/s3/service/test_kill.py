"""All processes are killed: the bucket has no wrong object, and in the end everything that was pulled."""

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
DOWNLOADS = 20


def test_a_kill_during_twenty_downloads(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """Twenty layers are partly uploaded: none is in the bucket after the kill, and all are after the next pulls."""
    digests = [fake_registry.add_blob(layer(f"download {number}", 3 * MIB)) for number in range(DOWNLOADS)]
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
    eventually(
        lambda: bucket_view.listed() == {blob_key(digest) for digest in digests},
        "all layers are in the bucket",
    )


def test_images_pulled_before_a_kill_are_published_after_it(
    start: Callable[..., Deployment], bucket_view: BucketView, proxy: S3Proxy, fake_registry: FakeRegistry
) -> None:
    """S3 rejects uploads, five images are pulled, and all processes are killed: they are uploaded after a restart."""
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
    eventually(lambda: bucket_view.listed() == keys, "everything pulled is in the bucket")
    assert fake_registry.count() == 0


def test_a_kill_at_the_last_byte(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """Five times, all processes are killed right after a pull: in the end, all images are in the bucket."""
    keys: set[str] = set()
    tags = [f"v{number}" for number in range(5)]
    add_images(fake_registry, *tags, size=1_500_000)
    deployment = start()
    for tag in tags:
        keys |= pull(deployment, tag)
        deployment.dockyard.kill()
        assert bucket_view.audit() == []
        deployment.dockyard.start()
    eventually(lambda: bucket_view.listed() == keys, "everything pulled is in the bucket")
