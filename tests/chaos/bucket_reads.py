"""Section S of the matrix, reading: objects that vanish, and answers that break, while they are asked for."""

import threading
from collections.abc import Callable, Iterable

from tests.chaos.bucket_rules import Rule, StoreRule, plot_of
from tests.chaos.bucket_scenes import TELL, blob_cached, cached_layers, cached_manifests
from tests.chaos.cells import State
from tests.chaos.outcomes import Outcome, either, hit, hit1, new
from tests.chaos.scenes import Fault, Part, Scene
from tests.s3.service.bucket_view import blob_key
from tests.s3.service.request_log import object_key
from tests.s3.store.proxy import Forward, Request

# S05


def _vanishing(scene: Scene, applied: list[Request]) -> Rule:
    """Each manifest and layer that was cached is gone when its body is asked for."""
    doomed = cached_layers(scene) | cached_manifests(scene)

    def rule(request: Request) -> Forward:
        if request.method == "GET" and doomed.pop(object_key(request), None) is not None:
            applied.append(request)
            scene.bucket.remove(object_key(request))
        return Forward()

    return rule


def _vanishing_midway(scene: Scene, applied: list[Request]) -> Rule:
    """The answers break half way, and then the object is gone."""
    doomed = cached_layers(scene) | cached_manifests(scene)

    def rule(request: Request) -> Forward:
        key = object_key(request)
        if request.method != "GET" or key not in doomed:
            return Forward()
        applied.append(request)
        body = doomed.pop(key)
        return Forward(cut_response_after=len(body) // 2 + 600, before_response=lambda: scene.bucket.remove(key))

    return rule


def _head_then_get(part: Part) -> None:
    """HEAD finds it, then it expires, then GET."""
    reply = part.deployment.head(part.lane.blob_path("cached"))
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
    State.BLOB_DOWNLOAD: (new(),),
}

VANISHING = Fault(
    "S05",
    "An object expires while it is asked for",
    (
        plot_of(
            "between HEAD and GET",
            StoreRule(_vanishing),
            _FETCHED_AGAIN,
            tell={**TELL, State.BLOB_CACHED: _head_then_get},
        ),
        plot_of("during GET", StoreRule(_vanishing_midway), _FETCHED_AGAIN, more={State.BLOB_CACHED: _by_range}),
    ),
)


# S12


def _resetting(times: int, keys: Callable[[Scene], Iterable[tuple[str, bytes]]]) -> StoreRule:
    def make(scene: Scene, applied: list[Request]) -> Rule:
        left = {key: (times, len(body)) for key, body in keys(scene)}
        lock = threading.Lock()

        def rule(request: Request) -> Forward:
            key = object_key(request)
            with lock:
                count, size = left.get(key, (0, 0))
                if request.method != "GET" or not count:
                    return Forward()
                left[key] = (count - 1, size)
            applied.append(request)
            head = 600 if "range" not in request.headers else 700
            return Forward(cut_response_after=head + size // 4, by_reset=True)

        return rule

    return StoreRule(make)


def _all_cached(scene: Scene) -> list[tuple[str, bytes]]:
    return [*cached_manifests(scene).items(), *cached_layers(scene).items()]


def _resumed_at_store(part: Part, _: object) -> None:
    key = blob_key(part.lane.layers["cached"].digest)
    asked = [each for each in list(part.scene.store.requests) if each.method == "GET" and object_key(each) == key]
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
        plot_of("once", _resetting(1, _all_cached), _ONCE, more={State.BLOB_CACHED: _resumed_at_store}),
        plot_of(
            "twice",
            _resetting(2, _all_cached),
            {State.TAG_CACHED: (either(new(), hit1()),), State.MANIFEST: (new(), new()), State.BLOB_CACHED: (new(),)},
            more={State.BLOB_CACHED: _by_range},
            reason="one worker may look after a tag and another after its manifest, which then asks the store as well",
        ),
    ),
)

FAULTS = (VANISHING, RESET)
