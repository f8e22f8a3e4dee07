"""Objects expire, or responses break, while they are read from the bucket: S05, S12."""

import threading
from collections.abc import Callable, Iterable

from tests.chaos.engine.case import State
from tests.chaos.engine.deployment_case import DeploymentCaseRun
from tests.chaos.engine.outcomes import Outcome, either, hit, hit1, new
from tests.chaos.engine.run import Run
from tests.chaos.engine.variant import Fault
from tests.chaos.faults.s3_steps import S3_STEPS, cached_layers, cached_manifests, request_cached_blob
from tests.chaos.faults.s3_variants import ProxyRule, Rule, rule_variant
from tests.s3.service.bucket_view import blob_key
from tests.s3.service.request_log import object_key
from tests.s3.store.proxy import Forward, Request

# S05


def _expiring(run: Run, applied: list[Request]) -> Rule:
    """Each cached manifest and layer is removed when its body is requested."""
    expiring = cached_layers(run) | cached_manifests(run)

    def rule(request: Request) -> Forward:
        if request.method == "GET" and expiring.pop(object_key(request), None) is not None:
            applied.append(request)
            run.bucket.remove(object_key(request))
        return Forward()

    return rule


def _expiring_midway(run: Run, applied: list[Request]) -> Rule:
    """The response breaks half-way, and then the object is removed."""
    expiring = cached_layers(run) | cached_manifests(run)

    def rule(request: Request) -> Forward:
        key = object_key(request)
        if request.method != "GET" or key not in expiring:
            return Forward()
        applied.append(request)
        body = expiring.pop(key)
        return Forward(cut_response_after=len(body) // 2 + 600, before_response=lambda: run.bucket.remove(key))

    return rule


def _head_then_get(case: DeploymentCaseRun) -> None:
    """HEAD succeeds, then the object expires, then GET."""
    response = case.deployment.head(case.upstream.blob_path("cached"))
    case.check(response.header("Content-Length") == str(case.variant.layer_bytes), f"HEAD: {response.status}")
    request_cached_blob(case)


def _check_range(case: DeploymentCaseRun, _: object) -> None:
    (request,) = case.upstream.requests("blob", "GET")
    case.check((request.request.header("Range") or "").startswith("bytes="), "fetched again from the beginning")
    case.check(request.sent_bytes < case.variant.layer_bytes, "more than what was missing came from the upstream")


_FETCHED_AGAIN: dict[State, tuple[Outcome, ...]] = {
    State.TAG_CACHED: (new(),),
    State.TAG_COLD: (new(),),
    State.MANIFEST: (new(), new()),
    State.BLOB_CACHED: (new(),),
    State.BLOB_COLD: (new(),),
    State.BLOB_DOWNLOAD: (new(),),
}

EXPIRING = Fault(
    "S05",
    "An object expires while it is requested",
    (
        rule_variant(
            "between HEAD and GET",
            ProxyRule(_expiring),
            _FETCHED_AGAIN,
            steps={**S3_STEPS, State.BLOB_CACHED: _head_then_get},
        ),
        rule_variant(
            "during GET", ProxyRule(_expiring_midway), _FETCHED_AGAIN, checks={State.BLOB_CACHED: _check_range}
        ),
    ),
)


# S12


def _resetting(times: int, keys: Callable[[Run], Iterable[tuple[str, bytes]]]) -> ProxyRule:
    def make(run: Run, applied: list[Request]) -> Rule:
        left = {key: (times, len(body)) for key, body in keys(run)}
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

    return ProxyRule(make)


def _all_cached(run: Run) -> list[tuple[str, bytes]]:
    return [*cached_manifests(run).items(), *cached_layers(run).items()]


def _check_resumed_at_bucket(case: DeploymentCaseRun, _: object) -> None:
    key = blob_key(case.upstream.layers["cached"].digest)
    gets = [each for each in list(case.run.s3_proxy.requests) if each.method == "GET" and object_key(each) == key]
    case.check(len(gets) == 2, f"{len(gets)} GETs of the object")
    case.check("range" in gets[-1].headers, "the second GET has no Range")
    case.check("if-match" in gets[-1].headers, "the second GET has no If-Match")


_ONCE: dict[State, tuple[Outcome, ...]] = {
    State.TAG_CACHED: (hit1(),),
    State.MANIFEST: (hit(), new()),
    State.BLOB_CACHED: (hit(),),
}
RESET = Fault(
    "S12",
    "RST in the middle of a GET",
    (
        rule_variant("once", _resetting(1, _all_cached), _ONCE, checks={State.BLOB_CACHED: _check_resumed_at_bucket}),
        rule_variant(
            "twice",
            _resetting(2, _all_cached),
            {State.TAG_CACHED: (either(new(), hit1()),), State.MANIFEST: (new(), new()), State.BLOB_CACHED: (new(),)},
            checks={State.BLOB_CACHED: _check_range},
            reason="a tag and its manifest may be owned by two workers, which then both read the bucket",
        ),
    ),
)

FAULTS = (EXPIRING, RESET)
