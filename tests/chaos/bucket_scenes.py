"""A scene with a bucket: what is cached is in it and nowhere else. It is reached through toxiproxy and the shim.

The six states as they are told under a fault of the store, and how it is seen that all is well again.
"""

import hashlib
import time

import attrs

from tests.chaos.cells import State
from tests.chaos.lanes import REPO, Lane, wait_for
from tests.chaos.outcomes import Got, Outcome, error, hit, hit1, new
from tests.chaos.scenes import Part, Scene, Tell
from tests.s3.service.bucket_view import blob_key, manifest_key, tag_key
from tests.s3.store.proxy import Forward
from tests.support.bodies import digest_of, read_whole
from tests.support.fake_registry import OCI_MANIFEST
from tests.support.http_client import Crowd, send_request

READERS = 5
BOTH_DOWN_S = 3.0
PUBLISHED_WITHIN_S = 60.0
WELL_IN_A_ROW = 6
SMALL_BYTES = 200_000


# What is in the bucket before


def fill_bucket(scene: Scene) -> None:
    """Put the cached image of each lane into the bucket, as another Dockyard would have."""
    for lane in scene.lanes.values():
        scene.props.setdefault("kept", {}).update(put_image(scene, lane, "cached"))
    small = small_blob(scene)
    scene.bucket.put_blob(small)
    scene.props["kept"][blob_key(digest_of(small))] = small


def put_image(scene: Scene, lane: Lane, tag: str) -> dict[str, bytes]:
    """Put an image with its tag; the objects by key."""
    image, name = lane.images[tag], f"{lane.prefix}/{REPO}"
    objects = {
        manifest_key(name, image.digest): (image.body, OCI_MANIFEST),
        tag_key(name, tag): (image.digest.encode(), "text/plain"),
    }
    for digest in (image.config, *image.layers):
        objects[blob_key(digest)] = (read_whole(lane.fake_registry._blobs[digest][0]), "application/octet-stream")
    for key, (body, media_type) in objects.items():
        scene.bucket.put(key, body, media_type)
    return {key: body for key, (body, _) in objects.items()}


def small_blob(scene: Scene) -> bytes:
    """A blob that is verified before its first byte; the lane of the cached blob has it upstream too."""
    body = hashlib.shake_128(f"small {scene.bucket.bucket}".encode()).digest(SMALL_BYTES)
    if lane := scene.lanes.get(State.BLOB_CACHED):
        lane.fake_registry.add_blob(body)
    return body


def cached_layers(scene: Scene, *states: State) -> dict[str, bytes]:
    """The layers that are in the bucket for some states, or for all; by key."""
    return {
        blob_key(lane.layers["cached"].digest): lane.layers["cached"].data
        for state, lane in scene.lanes.items()
        if not states or state in states
    }


def cached_manifests(scene: Scene, *states: State) -> dict[str, bytes]:
    """The manifests that are in the bucket for some states, or for all; by key."""
    return {
        manifest_key(f"{lane.prefix}/{REPO}", lane.images["cached"].digest): lane.images["cached"].body
        for state, lane in scene.lanes.items()
        if not states or state in states
    }


# The states


def tag_cached(part: Part) -> None:
    """By tag."""
    path, image = part.lane.manifest_path("cached"), part.lane.images["cached"]
    part.meet()
    part.see(path, image.body, part.outcomes[0], image.digest)


def tag_cold(part: Part) -> None:
    """By tag, and nobody has it but the upstream. When that is away too, it is said so in time."""
    path, image = part.lane.manifest_path("cold"), part.lane.images["cold"]
    part.meet()
    part.see(path, image.body, part.outcomes[0], image.digest)
    if "is_gone" not in part.scene.props:
        return
    part.lane.fake_registry.listener.close()
    got = part.get(part.lane.manifest_path("nowhere"), b"")
    part.record.seen += f"; both away: {got.describe()}"
    part.record.problems += error(503, BOTH_DOWN_S, 504)._judge_answer(got)
    part.lane.fake_registry.listener.open()


def manifest(part: Part) -> None:
    """By digest: one that the bucket has, and one that it has not."""
    part.meet()
    for tag, outcome in zip(("cached", "cold"), part.outcomes, strict=True):
        image = part.lane.images[tag]
        part.see(part.lane.digest_path(tag), image.body, outcome, image.digest)


def blob_cached(part: Part) -> None:
    """A few readers at once."""
    truth = part.lane.layers["cached"]
    part.meet()
    part.judge(part.outcomes[0], read_together(part, "cached"), truth.digest)


def blob_cold(part: Part) -> None:
    """One client."""
    truth = part.lane.layers["cold"]
    part.meet()
    part.see(part.lane.blob_path("cold"), truth.data, part.outcomes[0], truth.digest)


def blob_in_download(part: Part) -> None:
    """A leader and nine followers, and the publication, half way."""
    with part.download() as crowd:
        part.meet_in_download()
        got = part.land(crowd)
    part.judge(part.outcomes[0], got, part.lane.layers["cold"].digest)


TELL: dict[State, Tell] = {
    State.TAG_CACHED: tag_cached,
    State.TAG_COLD: tag_cold,
    State.MANIFEST: manifest,
    State.BLOB_CACHED: blob_cached,
    State.BLOB_COLD: blob_cold,
    State.BLOB_DOWNLOAD: blob_in_download,
}


# What clients must see where the fault is none of theirs: what is cached, and the rest from the upstream, once.
AS_EVER: dict[State, tuple[Outcome, ...]] = {
    State.TAG_CACHED: (hit1(),),
    State.TAG_COLD: (new(),),
    State.MANIFEST: (hit(), new()),
    State.BLOB_CACHED: (hit(),),
    State.BLOB_COLD: (new(),),
    State.BLOB_DOWNLOAD: (new(),),
}


def read_together(part: Part, tag: str) -> tuple[Got, ...]:
    """What a few readers of a layer have."""
    began_at = time.monotonic()
    with Crowd(part.deployment.address, part.lane.blob_path(tag), part.lane.layers[tag], READERS) as crowd:
        crowd.run(within_s=100.0)
        got = tuple(Got.of_member(each, (each.ended_at or began_at) - began_at) for each in crowd.members)
    for each in got:
        part.check_always(each)
    return got


def within(outcome: Outcome, seconds: float) -> Outcome:
    """The same, in time."""
    return attrs.evolve(outcome, word=f"{outcome.word} <= {seconds:g} s", within_s=seconds)


# The end


def forward(scene: Scene) -> None:
    """The shim and the way are honest again."""
    scene.store.rule = lambda _: Forward()
    assert scene.way is not None
    scene.way.restore()


def is_used_again(scene: Scene) -> None:
    """What only the bucket has is served from it, by whichever worker, several times in a row."""
    row = asked = 0
    while row < WELL_IN_A_ROW:
        asked += 1
        body = hashlib.shake_128(f"well {scene.bucket.bucket} {asked}".encode()).digest(1000)
        scene.bucket.put_blob(body)
        reply = send_request(scene.deployment.address, f"/v2/{scene.control.prefix}/{REPO}/blobs/{digest_of(body)}")
        row = row + 1 if reply.status == 200 and reply.body == body else 0
        if time.monotonic() - scene.mended_at > PUBLISHED_WITHIN_S:
            raise AssertionError(f"the bucket is not used again: {reply.status}")


def is_published(scene: Scene) -> None:
    """What was pulled is in the bucket, what was there is there, and nothing else of any kind."""
    place, wanted = scene.bucket, dict(scene.props["kept"])
    for state, lane in scene.lanes.items():
        name, image = f"{lane.prefix}/{REPO}", lane.images["cold"]
        if state is State.TAG_COLD:
            wanted[tag_key(name, "cold")] = image.digest.encode()
        if state in (State.TAG_COLD, State.MANIFEST):
            wanted[manifest_key(name, image.digest)] = image.body
        if state in (State.BLOB_COLD, State.BLOB_DOWNLOAD):
            wanted[blob_key(lane.layers["cold"].digest)] = lane.layers["cold"].data
    wait_for(lambda: wanted.keys() <= place.listed(), "everything is in the bucket", PUBLISHED_WITHIN_S)
    wait_for(lambda: all(place.get(key) == body for key, body in wanted.items()), "it is right", PUBLISHED_WITHIN_S)
    wait_for(lambda: not place.uploads(), "no upload is unfinished", PUBLISHED_WITHIN_S)
    scene.props["published_s"] = time.monotonic() - scene.mended_at
