"""Touching: what is pulled stays young in the bucket.

That a thousand hits cost one copy of each object is row L05 of the matrix: `tests/chaos/test_load_touch.py`.
"""

import os
import time
from collections.abc import Callable, Iterable

import pytest

from tests.bodies import digest_of
from tests.bucket.place import Place, blob_key
from tests.bucket.pulls import NAME, add_images, add_index, fetch, fill, layer, pull, put_by_hand
from tests.bucket.witness import Witness
from tests.house import House, eventually, stays
from tests.origin import Origin
from tests.stores.proxy import Forward, Proxy, Request

DAY_S = 86_400
QUIET_S = 1.5
WITHIN_S = 10.0


@pytest.fixture
def old_image(place: Place, origin: Origin) -> set[str]:
    """An index with its images, thirty days old in the bucket; the keys."""
    add_index(origin, "v1")
    return put_by_hand(place, origin, "v1", days_ago=30)


def see_young(place: Place, keys: Iterable[str]) -> None:
    """Wait until all these objects have been touched."""
    old = set(keys)

    def are_young() -> bool:
        old.difference_update({key for key in old if place.age(key).total_seconds() < DAY_S})
        return not old

    try:
        eventually(are_young, "young", WITHIN_S)
    except AssertionError:
        pytest.fail(f"not touched within {WITHIN_S} s: {sorted(old)}")


def test_an_image_that_is_only_partly_pulled_is_touched_whole(
    start: Callable[..., House], place: Place, old_image: set[str], origin: Origin
) -> None:
    """A client that has all layers asks for the manifest of its platform only: config and layers are touched too."""
    manifest = origin.manifest_body("team/app", "v1-arm64")
    house = start()
    assert house.get(f"/v2/{NAME}/manifests/{digest_of(manifest)}").body == manifest
    document = house.get(f"/v2/{NAME}/manifests/{digest_of(manifest)}").json
    parts = [blob_key(part["digest"]) for part in (document["config"], *document["layers"])]
    assert set(parts) < old_image
    see_young(place, parts)


def test_a_touch_keeps_what_an_object_is(start: Callable[..., House], place: Place) -> None:
    """Content-Type and metadata of others outlive the copy."""
    body = layer("kept", 10_000)
    key = place.put_blob(body, days_ago=30, content_type="application/vnd.other", origin="another tool")
    fetch(start(), digest_of(body))
    see_young(place, [key])
    found = place.stat(key)
    assert (found.content_type, found.metadata["x-amz-meta-origin"]) == ("application/vnd.other", "another tool")


def test_a_threshold_of_nothing_touches_nothing(
    start: Callable[..., House], place: Place, proxy: Proxy, old_image: set[str], origin: Origin
) -> None:
    """`touch_threshold: 0`: an old image is served, and S3 is only read."""
    house = start(proxy.host, storage={"touch_threshold": "0"})
    witness = Witness(proxy)
    for _ in range(3):
        pull(house, "v1")
    stays(lambda: set(witness.counted()) <= {"GET"}, "only reads", QUIET_S)


def test_a_young_image_is_not_touched(start: Callable[..., House], place: Place, proxy: Proxy, origin: Origin) -> None:
    """What came into the bucket a moment ago is left as it is, whoever brought it."""
    add_index(origin, "v1")
    put_by_hand(place, origin, "v1", days_ago=0)
    house = start(proxy.host)
    witness = Witness(proxy)
    for _ in range(3):
        pull(house, "v1")
    stays(lambda: set(witness.counted()) <= {"GET"}, "only reads", QUIET_S)


def test_what_is_pulled_again_and_again_stays_young(start: Callable[..., House], place: Place, origin: Origin) -> None:
    """With a threshold of two seconds: LastModified of every object of an image moves on with the pulls."""
    add_index(origin, "v1")
    house = start(storage={"touch_threshold": "2s"})
    keys = fill(house, place, "v1")
    first = {key: place.stat(key).modified for key in keys}

    def have_moved() -> bool:
        pull(house, "v1")
        return all((place.stat(key).modified - first[key]).total_seconds() > 2 for key in keys)

    eventually(have_moved, "every object is newer", WITHIN_S)


def test_a_local_image_that_is_two_days_old_is_touched(
    start: Callable[..., House], place: Place, origin: Origin
) -> None:
    """Threshold 24 h, two days since the last pull: manifests, blobs and the pointer are touched by the next."""
    add_index(origin, "v1")
    house = start()
    keys = fill(house, place, "v1")
    house.dockyard.stop()
    place.age_all(days=2)
    for path in (*house.dockyard.storage.glob("cache/**/*"), *house.dockyard.storage.glob("run/touched/*")):
        if path.is_file():
            os.utime(path, (time.time() - 2 * DAY_S,) * 2)  # as the clock would have it
    house.dockyard.start()
    pull(house, "v1")
    see_young(place, keys)


def test_what_was_deleted_is_published_again(start: Callable[..., House], place: Place, origin: Origin) -> None:
    """What the bucket lost comes back from the local tier when it would be touched: all parts of an image."""
    add_images(origin, "v1")
    house = start(storage={"touch_threshold": "2s"})
    keys = fill(house, place, "v1")
    contents = {key: place.get(key) for key in keys}
    for key in keys:
        place.remove(key)
    origin.forget()
    eventually(lambda: pull(house, "v1") and place.listed() == keys, "everything is back", 30.0)
    assert {key: place.get(key) for key in keys} == contents
    assert origin.count("blob") == 0


def test_an_object_that_vanishes_before_its_copy_is_published_again(
    start: Callable[..., House], place: Place, proxy: Proxy, origin: Origin
) -> None:
    """Deleted between the HEAD and the copy of a touch: no error, and it comes back."""
    digest = origin.add_blob(layer("vanishing", 50_000))
    house = start(proxy.host, storage={"touch_threshold": "2s"})
    fetch(house, digest)
    eventually(lambda: place.listed() == {blob_key(digest)}, "the blob is published", WITHIN_S)
    removed = []

    def vanish(request: Request) -> Forward:
        if request.operation == "PUT copy" and not removed:
            removed.append(request)
            place.remove(blob_key(digest))
        return Forward()

    proxy.rule = vanish
    eventually(lambda: fetch(house, digest) and removed, "a touch", WITHIN_S)
    eventually(lambda: fetch(house, digest) and place.listed() == {blob_key(digest)}, "the blob is back", 30.0)
