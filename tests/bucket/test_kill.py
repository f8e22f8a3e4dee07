"""kill -9 of everything: nothing wrong is in the bucket, and what was pulled is there in the end."""

import threading
from collections.abc import Callable
from contextlib import ExitStack

from tests import misbehaviour as bad
from tests.bucket.place import Place, blob_key
from tests.bucket.pulls import NAME, add_images, fetch, layer, pull
from tests.house import House, eventually, opened_at_exit
from tests.origin import Origin
from tests.stores.proxy import Forward, Proxy, error

MIB = 1024 * 1024
BACK_WITHIN_S = 60.0
FILLS = 20


def test_a_kill_during_twenty_fills(start: Callable[..., House], place: Place, origin: Origin) -> None:
    """Supervisor and workers die with twenty layers half way up: none of them is in the bucket, and then all are."""
    digests = [origin.add_blob(layer(f"fill {number}", 3 * MIB)) for number in range(FILLS)]
    house = start()
    with opened_at_exit(threading.Event()) as go_on, ExitStack() as stack:
        stalled = origin.on("blob", bad.stalled(0.6, go_on))
        for digest in digests:
            download = stack.enter_context(house.download(f"/v2/{NAME}/blobs/{digest}")).head()
            assert len(download.read(MIB)) == MIB
        house.dockyard.kill()
        origin.mend(stalled)
    assert place.audit() == []
    assert place.listed() == set()
    house.dockyard.start()
    for digest in digests:
        fetch(house, digest)
    eventually(lambda: place.listed() == {blob_key(digest) for digest in digests}, "all are there", BACK_WITHIN_S)


def test_what_was_pulled_before_a_kill_is_published_after_it(
    start: Callable[..., House], place: Place, proxy: Proxy, origin: Origin
) -> None:
    """S3 takes nothing, five images are pulled, everything dies: after a restart the bucket has them, unasked."""
    tags = [f"v{number}" for number in range(5)]
    add_images(origin, *tags)
    house = start(proxy.host)
    proxy.rule = lambda _: error(503, "SlowDown")
    keys = set().union(*(pull(house, tag) for tag in tags))
    house.dockyard.kill()
    assert place.listed() == set()
    proxy.rule = lambda _: Forward()
    house.dockyard.start()
    origin.forget()
    eventually(lambda: place.listed() == keys, "everything pulled is in the bucket", BACK_WITHIN_S)
    assert origin.count() == 0


def test_a_kill_at_the_last_byte(start: Callable[..., House], place: Place, origin: Origin) -> None:
    """A pull ends and everything dies at once, five times over: all of it is in the bucket in the end."""
    keys: set[str] = set()
    tags = [f"v{number}" for number in range(5)]
    add_images(origin, *tags, size=1_500_000)
    house = start()
    for tag in tags:
        keys |= pull(house, tag)
        house.dockyard.kill()
        assert place.audit() == []
        house.dockyard.start()
    eventually(lambda: place.listed() == keys, "everything pulled is in the bucket", BACK_WITHIN_S)
