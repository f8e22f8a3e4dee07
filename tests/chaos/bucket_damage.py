"""Section S of the matrix, objects: puts that break, objects that vanish, are damaged, or are not what was put."""

import threading
from collections.abc import Callable, Iterable

import attrs

from tests.bodies import digest_of
from tests.bucket.place import blob_key, is_missing, manifest_key
from tests.bucket.witness import key_of
from tests.chaos.bucket_scenes import (
    TELL,
    blob_cached,
    cached_layers,
    cached_manifests,
    fill_bucket,
    forward,
    is_published,
    is_used_again,
    read_together,
    small_blob,
    tag_cached,
)
from tests.chaos.cells import State
from tests.chaos.lanes import REPO, Lane, wait_for
from tests.chaos.outcomes import Outcome, cut, either, hit, hit1, new
from tests.chaos.patches import patched
from tests.chaos.scenes import MIB, Fault, Part, Plot, Scene, nothing
from tests.client import ask
from tests.house import eventually, open_house
from tests.origin import OCI_MANIFEST
from tests.stores.proxy import Forward, Request, Say, error

STRUCK_WITHIN_S = 10.0
SEVERAL_PARTS_BYTES = 12 * MIB
DOWN_S = 3.0
REPAIRED_WITHIN_S = 30.0
# A blob of one MiB goes up in one PUT, anything larger in parts of five: the smallest that S3 takes.
PARTS = """
from dockyard.storage.s3 import S3Tier
S3Tier.__init__.__kwdefaults__.update(single_at_most=2**20, part_size=5 * 2**20)
"""

Rule = Callable[[Request], Forward | Say]

# Whatever becomes of what is published: clients have it from the upstream, once.
PUBLISHING: dict[State, tuple[Outcome, ...]] = {
    State.TAG_CACHED: (hit1(),),
    State.TAG_COLD: (new(),),
    State.MANIFEST: (hit(), new()),
    State.BLOB_CACHED: (hit(),),
    State.BLOB_COLD: (new(),),
    State.BLOB_FLIGHT: (new(),),
}


@attrs.frozen
class _Rule:
    """A rule of the shim, made for a scene, that must have been applied."""

    make: Callable[[Scene, list[Request]], Rule]

    def strike(self, scene: Scene) -> None:
        """From now on."""
        applied: list[Request] = []
        scene.props["applied"] = applied
        scene.store.rule = self.make(scene, applied)

    def prepare(self, scene: Scene) -> None:
        """From the start on: a layer in flight is being published when all are ready."""
        fill_bucket(scene)
        self.strike(scene)

    def prove(self, scene: Scene) -> None:
        """It was. What is published comes to it after the clients are served."""
        wait_for(lambda: bool(scene.props["applied"]), "it strikes", STRUCK_WITHIN_S)


def _plot(name: str, rule: _Rule, outcomes: dict[State, tuple[Outcome, ...]], **more: object) -> Plot:
    plot = Plot(
        name,
        tell=TELL,
        outcomes=outcomes,
        prepare=fill_bucket,
        strike=rule.strike,
        prove=rule.prove,
        mend=forward,
        recover=is_used_again,
        after=is_published,
        has_bucket=True,
    )
    return attrs.evolve(plot, **more)


def _is_blob(request: Request) -> bool:
    return "/blobs/" in request.target and int(request.headers.get("content-length", "0")) > SMALL_PUT_BYTES


SMALL_PUT_BYTES = 100_000


# S04


def _cut_puts(part: str) -> _Rule:
    def make(scene: Scene, applied: list[Request]) -> Rule:
        def rule(request: Request) -> Forward:
            if request.method != "PUT" or not _is_blob(request) or part not in request.target:
                return Forward()
            applied.append(request)
            return Forward(cut_request=int(request.headers["content-length"]) // 2, by_reset=True)

        return rule

    return _Rule(make)


def _nothing_half(scene: Scene) -> None:
    """While puts are cut: no object of those that were sent."""
    _cut_puts("").prove(scene)
    for state in (State.BLOB_COLD, State.BLOB_FLIGHT):
        key = blob_key(scene.lanes[state].layers["cold"].digest)
        assert is_missing(scene.bucket, key), "an object is there whose PUT was cut"


def _early(name: str, rule: _Rule, *, in_parts: bool = False, **more: object) -> Plot:
    def prepare(scene: Scene) -> None:
        rule.prepare(scene)
        if in_parts:
            scene.environ |= patched(scene.directory / "patch", PARTS)

    layer_bytes = SEVERAL_PARTS_BYTES if in_parts else 4 * MIB
    return _plot(name, rule, PUBLISHING, strike=nothing, prepare=prepare, layer_bytes=layer_bytes, **more)


CUT_PUTS = Fault(
    "S04",
    "RST in the middle of a PUT",
    (
        _early("one PUT", _cut_puts(""), prove=_nothing_half),
        _early("the first part", _cut_puts("partNumber=1&"), in_parts=True, prove=_nothing_half),
        _early("the last part", _cut_puts("partNumber=3&"), in_parts=True, prove=_nothing_half),
    ),
)


# S05


def _vanishing(scene: Scene, applied: list[Request]) -> Rule:
    """Each manifest and layer that was cached is gone when its body is asked for."""
    doomed = cached_layers(scene) | cached_manifests(scene)

    def rule(request: Request) -> Forward:
        if request.method == "GET" and doomed.pop(key_of(request), None) is not None:
            applied.append(request)
            scene.bucket.remove(key_of(request))
        return Forward()

    return rule


def _vanishing_midway(scene: Scene, applied: list[Request]) -> Rule:
    """The answers break half way, and then the object is gone."""
    doomed = cached_layers(scene) | cached_manifests(scene)

    def rule(request: Request) -> Forward:
        key = key_of(request)
        if request.method != "GET" or key not in doomed:
            return Forward()
        applied.append(request)
        body = doomed.pop(key)
        return Forward(cut_answer=len(body) // 2 + 600, then=lambda: scene.bucket.remove(key))

    return rule


def _head_then_get(part: Part) -> None:
    """HEAD finds it, then it expires, then GET."""
    reply = part.house.head(part.lane.blob_path("cached"))
    part.check(reply.header("Content-Length") == str(part.plot.layer_bytes), f"HEAD: {reply.status}")
    blob_cached(part)


def _by_range(part: Part, _: object) -> None:
    (asked,) = part.lane.seen("blob", "GET")
    part.check((asked.request.header("Range") or "").startswith("bytes="), "fetched again from the beginning")
    part.check(asked.sent_bytes < part.plot.layer_bytes, "more than what was missing came from the upstream")


_FETCHED_AGAIN: dict[State, tuple[Outcome, ...]] = {
    State.TAG_CACHED: (new(),),
    State.TAG_COLD: (new(),),
    State.MANIFEST: (new(), new()),
    State.BLOB_CACHED: (new(),),
    State.BLOB_COLD: (new(),),
    State.BLOB_FLIGHT: (new(),),
}

VANISHING = Fault(
    "S05",
    "An object expires while it is asked for",
    (
        _plot(
            "between HEAD and GET", _Rule(_vanishing), _FETCHED_AGAIN, tell={**TELL, State.BLOB_CACHED: _head_then_get}
        ),
        _plot("during GET", _Rule(_vanishing_midway), _FETCHED_AGAIN, more={State.BLOB_CACHED: _by_range}),
    ),
)


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


def _flip(at: Callable[[int], int]) -> Callable[[bytes], bytes]:
    def change(body: bytes) -> bytes:
        place = at(len(body))
        return body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]

    return change


def _damaged_tag(part: Part) -> None:
    """Right at once; another one, damaged too, while the upstream is away: an error, never those bytes."""
    tag_cached(part)
    image = part.lane.images["cold"]
    part.lane.origin.registry.close()
    got = part.get(part.lane.digest_path("cold"), image.body)
    part.record.seen += f"; upstream away: {got.describe()}"
    part.check(got.status in (502, 503, 504), f"a damaged manifest, and the upstream away: {got.status}")
    part.lane.origin.registry.open()
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
        _damaged("in the first 32 KiB", _flip(lambda size: min(100, size // 2)), reason=_MISS),
        _damaged("in the middle", _flip(lambda size: size // 2), reason=_MISS),
        _damaged("in the last 32 KiB", _flip(lambda size: size - 2), reason=_MISS),
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


# S11


def _lying(change: Callable[[bytes], bytes]) -> Callable[[Scene, list[Request]], Rule]:
    """Each PUT of a layer is answered 200, and something else is stored."""

    def make(scene: Scene, applied: list[Request]) -> Rule:
        bodies = {blob_key(lane.layers["cold"].digest): lane.layers["cold"].data for lane in scene.lanes.values()}
        lock = threading.Lock()

        def rule(request: Request) -> Forward:
            key = key_of(request)
            with lock:
                body = bodies.pop(key, None) if request.method == "PUT" else None
            if body is None:
                return Forward()
            applied.append(request)
            return Forward(then=lambda: scene.bucket.put(key, change(body)))

        return rule

    return make


def _found_out_when_read(scene: Scene) -> None:
    """Another Dockyard over the bucket: nobody gets the wrong bytes whole, and reading repairs the bucket."""
    lanes = [scene.lanes[state] for state in (State.BLOB_COLD, State.BLOB_FLIGHT)]
    keys = {blob_key(lane.layers["cold"].digest) for lane in lanes}
    wait_for(lambda: keys <= scene.bucket.listed(), "what was stored is there", REPAIRED_WITHIN_S)
    with open_house(
        scene.control.origin,
        scene.directory / "second",
        upstreams=[lane.settings() for lane in lanes],
        storage=scene.bucket.storage(),
    ) as second:
        for lane in lanes:
            _read_until_right(second.address, lane)
        is_published(scene)


def _read_until_right(address: tuple[str, int], lane: Lane) -> None:
    truth = lane.layers["cold"].data

    def is_right() -> bool:
        reply = ask(address, lane.blob_path("cold"))
        assert not reply.is_complete or reply.body == truth, "WRONG BYTES SERVED WHOLE"
        return reply.is_complete

    eventually(is_right, "the right bytes", REPAIRED_WITHIN_S)


def _says_done(scene: Scene, applied: list[Request]) -> Rule:
    """The first completions of a multipart upload are answered 200 and an error."""

    def rule(request: Request) -> Forward | Say:
        if request.operation != "POST uploadId" or len(applied) >= 3:
            return Forward()
        applied.append(request)
        return error(200, "InternalError")

    return rule


_TOLD = "the store is told the digest and refuses other bytes; of one that lies, what it stored is found out when read"
LYING = Fault(
    "S11",
    "The store says 200 and stores something else",
    (
        _early(
            "other bytes",
            _Rule(_lying(_flip(lambda size: size // 2))),
            after=_found_out_when_read,
            reason=_TOLD,
        ),
        _early("short", _Rule(_lying(lambda body: body[:1000])), after=_found_out_when_read, reason=_TOLD),
        _early("completion with an error", _Rule(_says_done), in_parts=True),
    ),
)


# S12


def _resetting(times: int, keys: Callable[[Scene], Iterable[tuple[str, bytes]]]) -> _Rule:
    def make(scene: Scene, applied: list[Request]) -> Rule:
        left = {key: (times, len(body)) for key, body in keys(scene)}
        lock = threading.Lock()

        def rule(request: Request) -> Forward:
            key = key_of(request)
            with lock:
                count, size = left.get(key, (0, 0))
                if request.method != "GET" or not count:
                    return Forward()
                left[key] = (count - 1, size)
            applied.append(request)
            head = 600 if "range" not in request.headers else 700
            return Forward(cut_answer=head + size // 4, by_reset=True)

        return rule

    return _Rule(make)


def _all_cached(scene: Scene) -> list[tuple[str, bytes]]:
    return [*cached_manifests(scene).items(), *cached_layers(scene).items()]


def _resumed_at_store(part: Part, _: object) -> None:
    key = blob_key(part.lane.layers["cached"].digest)
    asked = [each for each in list(part.scene.store.requests) if each.method == "GET" and key_of(each) == key]
    part.check(len(asked) == 2, f"{len(asked)} GETs of the object")
    part.check("range" in asked[-1].headers, "the second GET has no Range")
    part.check("if-match" in asked[-1].headers, "the second GET has no If-Match")


_ONCE: dict[State, tuple[Outcome, ...]] = {
    State.TAG_CACHED: (hit1(),),
    State.MANIFEST: (hit(), new()),
    State.BLOB_CACHED: (hit(),),
}
RESET = Fault(
    "S12",
    "RST in the middle of a GET",
    (
        _plot("once", _resetting(1, _all_cached), _ONCE, more={State.BLOB_CACHED: _resumed_at_store}),
        _plot(
            "twice",
            _resetting(2, _all_cached),
            {State.TAG_CACHED: (either(new(), hit1()),), State.MANIFEST: (new(), new()), State.BLOB_CACHED: (new(),)},
            more={State.BLOB_CACHED: _by_range},
            reason="one worker may look after a tag and another after its manifest, which then asks the store as well",
        ),
    ),
)

FAULTS = (CUT_PUTS, VANISHING, FLIPPED, SHORT, LYING, RESET)
