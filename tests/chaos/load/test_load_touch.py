"""L05: a thousand hits on an old object in the bucket touch each object by one write."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.chaos.engine.case import State
from tests.chaos.engine.memory import MemoryLimit
from tests.chaos.load.loads import OLD, RecordLoad, note
from tests.s3.service.bucket_view import BucketView
from tests.s3.service.images import NAME, REPO, add_index, layer, put_image
from tests.s3.service.request_log import S3RequestLog
from tests.s3.service.test_touch import QUIET_S, assert_touched
from tests.s3.store.proxy import S3Proxy
from tests.support.bodies import digest_of
from tests.support.deployment import Deployment, stays
from tests.support.fake_registry import FakeRegistry
from tests.support.http_client import send_request

HITS = 1_000
CONCURRENT_REQUESTS = 8
DAYS = 30
WORKERS = 2


def _put_old(bucket_view: BucketView, fake_registry: FakeRegistry, state: State) -> tuple[str, set[str]]:
    """Put old objects into the bucket: an index with its images, or a layer; return the path and all keys."""
    if state is State.BLOB_CACHED:
        body = layer("old", 10_000)
        return f"blobs/{digest_of(body)}", {bucket_view.put_blob(body, days_ago=DAYS)}
    add_index(fake_registry, "v1")
    reference = "v1" if state is State.TAG_CACHED else digest_of(fake_registry.manifest_body(REPO, "v1-arm64"))
    return f"manifests/{reference}", put_image(bucket_view, fake_registry, reference, days_ago=DAYS)


def _hit(deployment: Deployment, path: str) -> float:
    """Send many requests for the same path, a few at once; return the seconds."""
    began_at = time.monotonic()
    with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
        statuses = list(pool.map(lambda _: send_request(deployment.address, path).status, range(HITS)))
    assert statuses == [200] * HITS
    return time.monotonic() - began_at


@pytest.mark.parametrize("state", [State.TAG_CACHED, State.MANIFEST, State.BLOB_CACHED])
def test_a_thousand_hits_on_old_objects(
    start: Callable[..., Deployment],
    bucket_view: BucketView,
    proxy: S3Proxy,
    fake_registry: FakeRegistry,
    record_load: RecordLoad,
    state: State,
) -> None:
    """The object, all that it refers to, and the pointer of the tag are each copied onto themselves once."""
    path, keys = _put_old(bucket_view, fake_registry, state)
    with record_load("L05", OLD, state) as (record,):
        deployment = start(proxy.host, workers=WORKERS, upstream={"check_interval": "60s"})
        request_log = S3RequestLog(proxy)
        with MemoryLimit(deployment) as memory:
            took_s = _hit(deployment, f"/v2/{NAME}/{path}")
            assert_touched(bucket_view, keys)
            stays(lambda: request_log.copies() == dict.fromkeys(keys, 1), "one copy each", QUIET_S)
        seen = f"{HITS:,} hits in {took_s:.1f} s, objects: {len(keys)}, copies: {request_log.copies().total()}"
        note(record, seen, fake_registry, memory)
        assert {key: sum(each.startswith("PUT") for each in request_log.of(key)) for key in keys} == dict.fromkeys(
            keys, 1
        )
        assert [each.request.method for each in fake_registry.received()] == (
            ["HEAD"] if state is State.TAG_CACHED else []
        )
        memory.assert_held()
