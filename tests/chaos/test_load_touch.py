"""L05: a thousand hits on what is old in the bucket make each object young, by one write."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.chaos.bounds import MemoryBound
from tests.chaos.cells import State
from tests.chaos.loads import OLD, KeepLoad, note
from tests.s3.service.place import Place
from tests.s3.service.pulls import NAME, REPO, add_index, layer, put_by_hand
from tests.s3.service.test_touch import QUIET_S, see_young
from tests.s3.service.witness import Witness
from tests.s3.store.proxy import Proxy
from tests.support.bodies import digest_of
from tests.support.deployment import Deployment, stays
from tests.support.fake_registry import FakeRegistry
from tests.support.http_client import ask

HITS = 1_000
AT_ONCE = 8
DAYS = 30
WORKERS = 2


def _put_old(place: Place, origin: FakeRegistry, state: State) -> tuple[str, set[str]]:
    """Put something into the bucket as it was long ago: an index, an image, a layer; its path and all its keys."""
    if state is State.BLOB_CACHED:
        body = layer("old", 10_000)
        return f"blobs/{digest_of(body)}", {place.put_blob(body, days_ago=DAYS)}
    add_index(origin, "v1")
    reference = "v1" if state is State.TAG_CACHED else digest_of(origin.manifest_body(REPO, "v1-arm64"))
    return f"manifests/{reference}", put_by_hand(place, origin, reference, days_ago=DAYS)


def _hit(deployment: Deployment, path: str) -> float:
    """Ask for the same many times, a few at once; seconds."""
    began_at = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        statuses = list(pool.map(lambda _: ask(deployment.address, path).status, range(HITS)))
    assert statuses == [200] * HITS
    return time.monotonic() - began_at


@pytest.mark.parametrize("state", [State.TAG_CACHED, State.MANIFEST, State.BLOB_CACHED])
def test_a_thousand_hits_on_what_is_old(
    start: Callable[..., Deployment],
    place: Place,
    proxy: Proxy,
    origin: FakeRegistry,
    keep_load: KeepLoad,
    state: State,
) -> None:
    """What is asked for and all that it names, the pointer of the tag too, is copied onto itself once."""
    path, keys = _put_old(place, origin, state)
    with keep_load("L05", OLD, state) as (record,):
        deployment = start(proxy.host, workers=WORKERS, upstream={"check_interval": "60s"})
        witness = Witness(proxy)
        with MemoryBound(deployment) as memory:
            took_s = _hit(deployment, f"/v2/{NAME}/{path}")
            see_young(place, keys)
            stays(lambda: witness.copies() == dict.fromkeys(keys, 1), "one copy each", QUIET_S)
        seen = f"{HITS:,} hits in {took_s:.1f} s, objects: {len(keys)}, copies: {witness.copies().total()}"
        note(record, seen, origin, memory)
        assert {key: sum(each.startswith("PUT") for each in witness.of(key)) for key in keys} == dict.fromkeys(keys, 1)
        assert [each.request.method for each in origin.seen()] == (["HEAD"] if state is State.TAG_CACHED else [])
        memory.assert_held()
