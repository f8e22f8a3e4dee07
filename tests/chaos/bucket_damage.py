"""Section S of the matrix, damage: objects of the bucket that are not what they were."""

from collections.abc import Callable

import attrs

from tests.chaos.bucket_rules import flip
from tests.chaos.bucket_scenes import (
    TELL,
    cached_layers,
    cached_manifests,
    fill_bucket,
    is_published,
    is_used_again,
    read_together,
    small_blob,
    tag_cached,
)
from tests.chaos.cells import State
from tests.chaos.lanes import REPO
from tests.chaos.outcomes import Outcome, cut, new
from tests.chaos.scenes import Fault, Part, Plot, Scene
from tests.s3.service.bucket_view import blob_key, manifest_key
from tests.support.bodies import digest_of
from tests.support.deployment import eventually
from tests.support.fake_registry import OCI_MANIFEST

DOWN_S = 3.0


# S09, S10


@attrs.frozen
class _Damage:
    """What stands in the bucket instead of each cached manifest and blob."""

    change: Callable[[bytes], bytes]

    def prepare(self, scene: Scene) -> None:
        """Put it there."""
        fill_bucket(scene)
        place = scene.bucket
        for key, body in cached_manifests(scene, State.TAG_CACHED, State.MANIFEST).items():
            place.put(key, self.change(body), OCI_MANIFEST)
        for key, body in cached_layers(scene, State.BLOB_CACHED).items():
            place.put(key, self.change(body))
        place.put(blob_key(digest_of(small_blob(scene))), self.change(small_blob(scene)))
        lane = scene.lanes[State.TAG_CACHED]
        image = lane.images["cold"]
        name = f"{lane.prefix}/{REPO}"
        place.put(manifest_key(name, image.digest), self.change(image.body), OCI_MANIFEST)
        scene.props["kept"][manifest_key(name, image.digest)] = image.body

    def strike(self, scene: Scene) -> None:
        """It is there already."""

    def prove(self, scene: Scene) -> None:
        """It was damaged: nothing is what it was."""
        body = scene.control.images["cached"].body
        assert self.change(body) != body


def _damaged_tag(part: Part) -> None:
    """Right at once; another one, damaged too, while the upstream is away: an error, never those bytes."""
    tag_cached(part)
    image = part.lane.images["cold"]
    part.lane.fake_registry.listener.close()
    got = part.get(part.lane.digest_path("cold"), image.body)
    part.record.seen += f"; upstream away: {got.describe()}"
    part.check(got.status in (502, 503, 504), f"a damaged manifest, and the upstream away: {got.status}")
    part.lane.fake_registry.listener.open()
    eventually(lambda: part.get(part.lane.digest_path("cold"), image.body).status == 200, "well again", DOWN_S * 2)


def _damaged_blob(part: Part) -> None:
    """A small one is right at once. A large one is cut, and right the next time."""
    truth, small = part.lane.layers["cached"], small_blob(part.scene)
    part.meet()
    path = f"/v2/{part.lane.prefix}/{REPO}/blobs/{digest_of(small)}"
    first, *large = part.outcomes
    part.see(path, small, first, digest_of(small))
    for outcome in large:
        before = len(part.lane.seen())
        # Who comes a moment after the first that is cut is served already.
        got = (
            read_together(part, "cached")
            if outcome.is_whole
            else (part.get(part.lane.blob_path("cached"), truth.data),)
        )
        part.judge(outcome, got, truth.digest, before)


_CUT = attrs.evolve(cut(5.0), requests=(0, 0))
_DAMAGED: dict[State, tuple[Outcome, ...]] = {
    State.TAG_CACHED: (new(),),
    State.MANIFEST: (new(), new()),
    State.BLOB_CACHED: (new(), _CUT, new()),
}
_EMPTY = {**_DAMAGED, State.BLOB_CACHED: (new(), new())}
_TELL_DAMAGED = {**TELL, State.TAG_CACHED: _damaged_tag, State.BLOB_CACHED: _damaged_blob}


def _damaged(name: str, change: Callable[[bytes], bytes], *, is_empty: bool = False, reason: str = "") -> Plot:
    damage = _Damage(change)
    return Plot(
        name,
        tell=_TELL_DAMAGED,
        outcomes=_EMPTY if is_empty else _DAMAGED,
        prepare=damage.prepare,
        strike=damage.strike,
        prove=damage.prove,
        recover=is_used_again,
        after=is_published,
        has_bucket=True,
        reason=reason,
    )


_MISS = "a damaged copy is as good as none: with the upstream away that is 503, and clients try again"
FLIPPED = Fault(
    "S09",
    "A bit of a cached object is flipped",
    (
        _damaged("in the first 32 KiB", flip(lambda size: min(100, size // 2)), reason=_MISS),
        _damaged("in the middle", flip(lambda size: size // 2), reason=_MISS),
        _damaged("in the last 32 KiB", flip(lambda size: size - 2), reason=_MISS),
    ),
)
SHORT = Fault(
    "S10",
    "A cached object is short",
    (
        _damaged("empty", lambda _: b"", is_empty=True),
        _damaged(
            "shorter than recorded",
            lambda body: body[: len(body) // 2],
            reason="no size is kept beside the object: a large one is cut as if it were damaged",
        ),
    ),
)

FAULTS = (FLIPPED, SHORT)
