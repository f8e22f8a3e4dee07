"""Uploads break, or the bucket stores something else than it was sent: S04, S11."""

import threading
from collections.abc import Callable

from tests.chaos.engine.case import State
from tests.chaos.engine.isolated_upstream import IsolatedUpstream, wait_for
from tests.chaos.engine.outcomes import UNAFFECTED
from tests.chaos.engine.patches import install_patch
from tests.chaos.engine.run import Run
from tests.chaos.engine.variant import MIB, DeploymentVariant, Fault, do_nothing
from tests.chaos.faults.s3_steps import wait_until_published
from tests.chaos.faults.s3_variants import ProxyRule, Rule, flip, rule_variant
from tests.s3.service.bucket_view import blob_key, is_missing
from tests.s3.service.request_log import object_key
from tests.s3.store.proxy import Forward, Request, Respond, s3_error
from tests.support.deployment import eventually, open_deployment
from tests.support.http_client import send_request

SMALL_PUT_BYTES = 100_000
SEVERAL_PARTS_BYTES = 12 * MIB
REPAIRED_WITHIN_S = 30.0
# A blob of up to one MiB is uploaded by one PUT, a larger one in parts of five MiB, the smallest that S3 accepts.
PARTS = """
from dockyard.s3.store import S3Store
S3Store.__init__.__kwdefaults__.update(max_put_bytes=2**20, part_bytes=5 * 2**20)
"""


def _is_blob(request: Request) -> bool:
    return "/blobs/" in request.target and int(request.headers.get("content-length", "0")) > SMALL_PUT_BYTES


# S04


def _cut_puts(part_query: str) -> ProxyRule:
    def make(run: Run, applied: list[Request]) -> Rule:
        def rule(request: Request) -> Forward:
            if request.method != "PUT" or not _is_blob(request) or part_query not in request.target:
                return Forward()
            applied.append(request)
            return Forward(cut_request_after=int(request.headers["content-length"]) // 2, by_reset=True)

        return rule

    return ProxyRule(make)


def _no_partial_object(run: Run) -> None:
    """While PUTs are cut, the bucket has no object of those that were sent."""
    _cut_puts("").verify(run)
    for state in (State.BLOB_COLD, State.BLOB_DOWNLOAD):
        key = blob_key(run.upstreams[state].layers["cold"].digest)
        assert is_missing(run.bucket, key), "there is an object whose PUT was cut"


def _from_the_start(name: str, rule: ProxyRule, *, in_parts: bool = False, **more: object) -> DeploymentVariant:
    def prepare(run: Run) -> None:
        rule.prepare(run)
        if in_parts:
            run.environment.environ |= install_patch(run.directory / "patch", PARTS)

    layer_bytes = SEVERAL_PARTS_BYTES if in_parts else 4 * MIB
    return rule_variant(name, rule, UNAFFECTED, inject=do_nothing, prepare=prepare, layer_bytes=layer_bytes, **more)


CUT_PUTS = Fault(
    "S04",
    "RST in the middle of a PUT",
    (
        _from_the_start("one PUT", _cut_puts(""), verify=_no_partial_object),
        _from_the_start("the first part", _cut_puts("partNumber=1&"), in_parts=True, verify=_no_partial_object),
        _from_the_start("the last part", _cut_puts("partNumber=3&"), in_parts=True, verify=_no_partial_object),
    ),
)


# S11


def _storing(change: Callable[[bytes], bytes]) -> Callable[[Run, list[Request]], Rule]:
    """The response to each PUT of a layer is 200, but something else is stored."""

    def make(run: Run, applied: list[Request]) -> Rule:
        bodies = {
            blob_key(upstream.layers["cold"].digest): upstream.layers["cold"].data
            for upstream in run.upstreams.values()
        }
        lock = threading.Lock()

        def rule(request: Request) -> Forward:
            key = object_key(request)
            with lock:
                body = bodies.pop(key, None) if request.method == "PUT" else None
            if body is None:
                return Forward()
            applied.append(request)
            return Forward(before_response=lambda: run.bucket.put(key, change(body)))

        return rule

    return make


def _check_second_dockyard(run: Run) -> None:
    """A second Dockyard with the same bucket never serves the wrong bytes completely, and repairs the bucket."""
    upstreams = [run.upstreams[state] for state in (State.BLOB_COLD, State.BLOB_DOWNLOAD)]
    keys = {blob_key(upstream.layers["cold"].digest) for upstream in upstreams}
    wait_for(lambda: keys <= run.bucket.listed(), "the objects are stored", REPAIRED_WITHIN_S)
    with open_deployment(
        run.control.fake_registry,
        run.directory / "second",
        upstreams=[upstream.settings() for upstream in upstreams],
        storage=run.bucket.storage(),
    ) as second:
        for upstream in upstreams:
            _read_until_right(second.address, upstream)
        wait_until_published(run)


def _read_until_right(address: tuple[str, int], upstream: IsolatedUpstream) -> None:
    truth = upstream.layers["cold"].data

    def is_right() -> bool:
        response = send_request(address, upstream.blob_path("cold"))
        assert not response.is_complete or response.body == truth, "WRONG BYTES SERVED WHOLE"
        return response.is_complete

    eventually(is_right, "the right bytes", REPAIRED_WITHIN_S)


def _failing_completion(run: Run, applied: list[Request]) -> Rule:
    """The response to the first three completions of multipart uploads is 200 with an error in the body."""

    def rule(request: Request) -> Forward | Respond:
        if request.operation != "POST uploadId" or len(applied) >= 3:
            return Forward()
        applied.append(request)
        return s3_error(200, "InternalError")

    return rule


_FOUND_WHEN_READ = (
    "the bucket gets the digest with each upload and rejects other bytes; "
    "if it stores other bytes nevertheless, they are found when they are read"
)
WRONG_OBJECT = Fault(
    "S11",
    "The bucket responds 200 and stores something else",
    (
        _from_the_start(
            "other bytes",
            ProxyRule(_storing(flip(lambda size: size // 2))),
            check_after=_check_second_dockyard,
            reason=_FOUND_WHEN_READ,
        ),
        _from_the_start(
            "short",
            ProxyRule(_storing(lambda body: body[:1000])),
            check_after=_check_second_dockyard,
            reason=_FOUND_WHEN_READ,
        ),
        _from_the_start("completion with an error", ProxyRule(_failing_completion), in_parts=True),
    ),
)

FAULTS = (CUT_PUTS, WRONG_OBJECT)
