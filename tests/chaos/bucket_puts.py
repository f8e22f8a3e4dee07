"""Section S of the matrix, writing: puts that break, and a store that lies about what it has stored."""

import threading
from collections.abc import Callable

from tests.chaos.bucket_rules import Rule, StoreRule, flip, plot_of
from tests.chaos.bucket_scenes import AS_EVER, is_published
from tests.chaos.cells import State
from tests.chaos.lanes import Lane, wait_for
from tests.chaos.patches import patched
from tests.chaos.scenes import MIB, Fault, Plot, Scene, nothing
from tests.s3.service.bucket_view import blob_key, is_missing
from tests.s3.service.request_log import object_key
from tests.s3.store.proxy import Forward, Request, Respond, s3_error
from tests.support.deployment import eventually, open_deployment
from tests.support.http_client import send_request

SEVERAL_PARTS_BYTES = 12 * MIB
REPAIRED_WITHIN_S = 30.0
# A blob of one MiB goes up in one PUT, anything larger in parts of five: the smallest that S3 takes.
PARTS = """
from dockyard.s3 import S3Store
S3Store.__init__.__kwdefaults__.update(max_put_bytes=2**20, part_bytes=5 * 2**20)
"""


def _is_blob(request: Request) -> bool:
    return "/blobs/" in request.target and int(request.headers.get("content-length", "0")) > SMALL_PUT_BYTES


SMALL_PUT_BYTES = 100_000


# S04


def _cut_puts(part: str) -> StoreRule:
    def make(scene: Scene, applied: list[Request]) -> Rule:
        def rule(request: Request) -> Forward:
            if request.method != "PUT" or not _is_blob(request) or part not in request.target:
                return Forward()
            applied.append(request)
            return Forward(cut_request_after=int(request.headers["content-length"]) // 2, by_reset=True)

        return rule

    return StoreRule(make)


def _nothing_half(scene: Scene) -> None:
    """While puts are cut: no object of those that were sent."""
    _cut_puts("").prove(scene)
    for state in (State.BLOB_COLD, State.BLOB_DOWNLOAD):
        key = blob_key(scene.lanes[state].layers["cold"].digest)
        assert is_missing(scene.bucket, key), "an object is there whose PUT was cut"


def _early(name: str, rule: StoreRule, *, in_parts: bool = False, **more: object) -> Plot:
    def prepare(scene: Scene) -> None:
        rule.prepare(scene)
        if in_parts:
            scene.environ |= patched(scene.directory / "patch", PARTS)

    layer_bytes = SEVERAL_PARTS_BYTES if in_parts else 4 * MIB
    return plot_of(name, rule, AS_EVER, strike=nothing, prepare=prepare, layer_bytes=layer_bytes, **more)


CUT_PUTS = Fault(
    "S04",
    "RST in the middle of a PUT",
    (
        _early("one PUT", _cut_puts(""), prove=_nothing_half),
        _early("the first part", _cut_puts("partNumber=1&"), in_parts=True, prove=_nothing_half),
        _early("the last part", _cut_puts("partNumber=3&"), in_parts=True, prove=_nothing_half),
    ),
)


# S11


def _lying(change: Callable[[bytes], bytes]) -> Callable[[Scene, list[Request]], Rule]:
    """Each PUT of a layer is answered 200, and something else is stored."""

    def make(scene: Scene, applied: list[Request]) -> Rule:
        bodies = {blob_key(lane.layers["cold"].digest): lane.layers["cold"].data for lane in scene.lanes.values()}
        lock = threading.Lock()

        def rule(request: Request) -> Forward:
            key = object_key(request)
            with lock:
                body = bodies.pop(key, None) if request.method == "PUT" else None
            if body is None:
                return Forward()
            applied.append(request)
            return Forward(before_response=lambda: scene.bucket.put(key, change(body)))

        return rule

    return make


def _found_out_when_read(scene: Scene) -> None:
    """Another Dockyard over the bucket: nobody gets the wrong bytes whole, and reading repairs the bucket."""
    lanes = [scene.lanes[state] for state in (State.BLOB_COLD, State.BLOB_DOWNLOAD)]
    keys = {blob_key(lane.layers["cold"].digest) for lane in lanes}
    wait_for(lambda: keys <= scene.bucket.listed(), "what was stored is there", REPAIRED_WITHIN_S)
    with open_deployment(
        scene.control.fake_registry,
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
        reply = send_request(address, lane.blob_path("cold"))
        assert not reply.is_complete or reply.body == truth, "WRONG BYTES SERVED WHOLE"
        return reply.is_complete

    eventually(is_right, "the right bytes", REPAIRED_WITHIN_S)


def _says_done(scene: Scene, applied: list[Request]) -> Rule:
    """The first completions of a multipart upload are answered 200 and an error."""

    def rule(request: Request) -> Forward | Respond:
        if request.operation != "POST uploadId" or len(applied) >= 3:
            return Forward()
        applied.append(request)
        return s3_error(200, "InternalError")

    return rule


_TOLD = "the store is told the digest and refuses other bytes; of one that lies, what it stored is found out when read"
LYING = Fault(
    "S11",
    "The store says 200 and stores something else",
    (
        _early(
            "other bytes",
            StoreRule(_lying(flip(lambda size: size // 2))),
            after=_found_out_when_read,
            reason=_TOLD,
        ),
        _early("short", StoreRule(_lying(lambda body: body[:1000])), after=_found_out_when_read, reason=_TOLD),
        _early("completion with an error", StoreRule(_says_done), in_parts=True),
    ),
)

FAULTS = (CUT_PUTS, LYING)
