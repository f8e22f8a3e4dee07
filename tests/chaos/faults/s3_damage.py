"""Objects in the bucket are damaged or short: S09, S10."""

from collections.abc import Callable

import attrs

from tests.chaos.engine.case import State
from tests.chaos.engine.deployment_case import DeploymentCaseRun
from tests.chaos.engine.isolated_upstream import REPO
from tests.chaos.engine.outcomes import Outcome, cut, new
from tests.chaos.engine.run import Run
from tests.chaos.engine.variant import DeploymentVariant, Fault, do_nothing
from tests.chaos.faults.s3_steps import (
    S3_STEPS,
    cached_layers,
    cached_manifests,
    fill_bucket,
    request_cached_tag,
    request_concurrently,
    small_blob,
)
from tests.chaos.faults.s3_variants import bucket_variant, flip
from tests.s3.service.bucket_view import blob_key, manifest_key
from tests.support.bodies import digest_of
from tests.support.deployment import eventually
from tests.support.fake_registry import OCI_MANIFEST

SERVED_AGAIN_WITHIN_S = 6.0


@attrs.frozen
class _Damage:
    """The change of each cached manifest and blob in the bucket."""

    change: Callable[[bytes], bytes]

    def prepare(self, run: Run) -> None:
        """Fill the bucket and change what is in it."""
        fill_bucket(run)
        bucket = run.bucket
        for key, body in cached_manifests(run, State.TAG_CACHED, State.MANIFEST).items():
            bucket.put(key, self.change(body), OCI_MANIFEST)
        for key, body in cached_layers(run, State.BLOB_CACHED).items():
            bucket.put(key, self.change(body))
        bucket.put(blob_key(digest_of(small_blob(run))), self.change(small_blob(run)))
        upstream = run.upstreams[State.TAG_CACHED]
        image = upstream.images["cold"]
        name = f"{upstream.prefix}/{REPO}"
        bucket.put(manifest_key(name, image.digest), self.change(image.body), OCI_MANIFEST)
        run.data["stored"][manifest_key(name, image.digest)] = image.body

    def verify(self, run: Run) -> None:
        """Check that the change changes something."""
        body = run.control.images["cached"].body
        assert self.change(body) != body


def _damaged_tag(case: DeploymentCaseRun) -> None:
    """A damaged manifest is fetched again; while the upstream is down, another damaged one is an error."""
    request_cached_tag(case)
    image = case.upstream.images["cold"]
    case.upstream.fake_registry.listener.close()
    response = case.get(case.upstream.digest_path("cold"), image.body)
    case.record.seen += f"; upstream down: {response.describe()}"
    case.check(response.status in (502, 503, 504), f"a damaged manifest while the upstream is down: {response.status}")
    case.upstream.fake_registry.listener.open()
    eventually(
        lambda: case.get(case.upstream.digest_path("cold"), image.body).status == 200,
        "served again",
        SERVED_AGAIN_WITHIN_S,
    )


def _damaged_blob(case: DeploymentCaseRun) -> None:
    """A small damaged blob is right at once; a large one is cut, and right the next time."""
    truth, small = case.upstream.layers["cached"], small_blob(case.run)
    case.wait_for_fault()
    path = f"/v2/{case.upstream.prefix}/{REPO}/blobs/{digest_of(small)}"
    first, *large = case.outcomes
    case.request_and_judge(path, small, first, digest_of(small))
    for outcome in large:
        before = len(case.upstream.requests())
        # With several clients, the later ones might get the repaired blob.
        responses = (
            request_concurrently(case, "cached")
            if outcome.is_whole
            else (case.get(case.upstream.blob_path("cached"), truth.data),)
        )
        case.judge(outcome, responses, truth.digest, before)


_CUT = attrs.evolve(cut(5.0), requests=(0, 0))
_DAMAGED: dict[State, tuple[Outcome, ...]] = {
    State.TAG_CACHED: (new(),),
    State.MANIFEST: (new(), new()),
    State.BLOB_CACHED: (new(), _CUT, new()),
}
_EMPTY = {**_DAMAGED, State.BLOB_CACHED: (new(), new())}
_DAMAGED_STEPS = {**S3_STEPS, State.TAG_CACHED: _damaged_tag, State.BLOB_CACHED: _damaged_blob}


def _damaged(
    name: str, change: Callable[[bytes], bytes], *, is_empty: bool = False, reason: str = ""
) -> DeploymentVariant:
    damage = _Damage(change)
    return bucket_variant(
        name,
        do_nothing,
        _EMPTY if is_empty else _DAMAGED,
        steps=_DAMAGED_STEPS,
        prepare=damage.prepare,
        verify=damage.verify,
        end=do_nothing,
        reason=reason,
    )


_MISS = "a damaged copy counts as a miss: while the upstream is down that is 503, and clients retry"
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
            reason="no size is stored with the object: a short large one is cut like a damaged one",
        ),
    ),
)

FAULTS = (FLIPPED, SHORT)
