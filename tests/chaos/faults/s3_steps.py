"""Steps for runs with a bucket: what is cached is in the bucket and nowhere else.

Before: the bucket is filled. Afterwards: Dockyard uses it again, and everything that was pulled is published.
"""

import hashlib
import time
from collections.abc import Mapping

import attrs

from tests.chaos.engine.case import State
from tests.chaos.engine.deployment_case import (
    DeploymentCaseRun,
    Steps,
    join_download,
    request_cold_blob,
    request_cold_tag,
)
from tests.chaos.engine.isolated_upstream import REPO, IsolatedUpstream, wait_for
from tests.chaos.engine.outcomes import ObservedResponse, Outcome, error
from tests.chaos.engine.run import Run
from tests.s3.service.bucket_view import blob_key, manifest_key, tag_key
from tests.s3.store.proxy import Forward
from tests.support.bodies import digest_of, read_whole
from tests.support.fake_registry import OCI_MANIFEST
from tests.support.http_client import Crowd, send_request

READERS = 5
BOTH_DOWN_WITHIN_S = 3.0
PUBLISHED_WITHIN_S = 60.0
HITS_IN_A_ROW = 6
SMALL_BYTES = 200_000


# Before the fault


def fill_bucket(run: Run) -> None:
    """Put the cached image of each upstream into the bucket, as another Dockyard would have."""
    for upstream in run.upstreams.values():
        run.data.setdefault("stored", {}).update(put_image(run, upstream, "cached"))
    small = small_blob(run)
    run.bucket.put_blob(small)
    run.data["stored"][blob_key(digest_of(small))] = small


def put_image(run: Run, upstream: IsolatedUpstream, tag: str) -> dict[str, bytes]:
    """Put an image and its tag into the bucket; return the objects by key."""
    image, name = upstream.images[tag], f"{upstream.prefix}/{REPO}"
    objects = {
        manifest_key(name, image.digest): (image.body, OCI_MANIFEST),
        tag_key(name, tag): (image.digest.encode(), "text/plain"),
    }
    for digest in (image.config, *image.layers):
        objects[blob_key(digest)] = (read_whole(upstream.fake_registry._blobs[digest][0]), "application/octet-stream")
    for key, (body, media_type) in objects.items():
        run.bucket.put(key, body, media_type)
    return {key: body for key, (body, _) in objects.items()}


def small_blob(run: Run) -> bytes:
    """A blob that is verified before its first byte is sent; the upstream of the cached blob has it, too."""
    body = hashlib.shake_128(f"small {run.bucket.bucket}".encode()).digest(SMALL_BYTES)
    if upstream := run.upstreams.get(State.BLOB_CACHED):
        upstream.fake_registry.add_blob(body)
    return body


def cached_layers(run: Run, *states: State) -> dict[str, bytes]:
    """The layers in the bucket for some states, or for all, by key."""
    return {
        blob_key(upstream.layers["cached"].digest): upstream.layers["cached"].data
        for state, upstream in run.upstreams.items()
        if not states or state in states
    }


def cached_manifests(run: Run, *states: State) -> dict[str, bytes]:
    """The manifests in the bucket for some states, or for all, by key."""
    return {
        manifest_key(f"{upstream.prefix}/{REPO}", upstream.images["cached"].digest): upstream.images["cached"].body
        for state, upstream in run.upstreams.items()
        if not states or state in states
    }


# The steps of the states


def request_cached_tag(case: DeploymentCaseRun) -> None:
    """Request a tag that is in the bucket."""
    path, image = case.upstream.manifest_path("cached"), case.upstream.images["cached"]
    case.wait_for_fault()
    case.request_and_judge(path, image.body, case.outcomes[0], image.digest)


def _request_cold_tag(case: DeploymentCaseRun) -> None:
    """Request a tag that only the upstream has; if the bucket is down, another one while the upstream is, too."""
    request_cold_tag(case)
    if "is_bucket_down" not in case.run.data:
        return
    case.upstream.fake_registry.listener.close()
    response = case.get(case.upstream.manifest_path("nowhere"), b"")
    case.record.seen += f"; both down: {response.describe()}"
    case.record.problems += error(503, BOTH_DOWN_WITHIN_S, 504).judge_response(response)
    case.upstream.fake_registry.listener.open()


def _request_manifests(case: DeploymentCaseRun) -> None:
    """Request two manifests by digest: one that is in the bucket, one that only the upstream has."""
    case.wait_for_fault()
    for tag, outcome in zip(("cached", "cold"), case.outcomes, strict=True):
        image = case.upstream.images[tag]
        case.request_and_judge(case.upstream.digest_path(tag), image.body, outcome, image.digest)


def request_cached_blob(case: DeploymentCaseRun) -> None:
    """Request a layer that is in the bucket, by several clients at once."""
    truth = case.upstream.layers["cached"]
    case.wait_for_fault()
    case.judge(case.outcomes[0], request_concurrently(case, "cached"), truth.digest)


S3_STEPS: Mapping[State, Steps] = {
    State.TAG_CACHED: request_cached_tag,
    State.TAG_COLD: _request_cold_tag,
    State.MANIFEST: _request_manifests,
    State.BLOB_CACHED: request_cached_blob,
    State.BLOB_COLD: request_cold_blob,
    State.BLOB_DOWNLOAD: join_download,
}


def request_concurrently(case: DeploymentCaseRun, tag: str) -> tuple[ObservedResponse, ...]:
    """The responses that several clients of a layer get."""
    began_at = time.monotonic()
    with Crowd(case.deployment.address, case.upstream.blob_path(tag), case.upstream.layers[tag], READERS) as crowd:
        return case.wait_for_crowd(crowd, began_at)


def within(outcome: Outcome, seconds: float) -> Outcome:
    """The same outcome within a time."""
    return attrs.evolve(outcome, word=f"{outcome.word} <= {seconds:g} s", within_s=seconds)


# After the fault


def restore_bucket(run: Run) -> None:
    """End all faults of the network and of the proxy in front of the bucket."""
    run.s3_proxy.rule = lambda _: Forward()
    run.s3_network.restore()


def wait_until_bucket_is_used(run: Run) -> None:
    """Wait until blobs that only the bucket has are served, several times in a row, by any worker."""
    row = number = 0
    while row < HITS_IN_A_ROW:
        number += 1
        body = hashlib.shake_128(f"hit {run.bucket.bucket} {number}".encode()).digest(1000)
        run.bucket.put_blob(body)
        response = send_request(run.deployment.address, f"/v2/{run.control.prefix}/{REPO}/blobs/{digest_of(body)}")
        row = row + 1 if response.status == 200 and response.body == body else 0
        if time.monotonic() - run.ended_at > PUBLISHED_WITHIN_S:
            raise AssertionError(f"the bucket is not used: {response.status}")


def wait_until_published(run: Run) -> None:
    """Wait until all that was pulled is in the bucket beside what was there, and no upload is unfinished."""
    bucket, wanted = run.bucket, dict(run.data["stored"])
    for state, upstream in run.upstreams.items():
        name, image = f"{upstream.prefix}/{REPO}", upstream.images["cold"]
        if state is State.TAG_COLD:
            wanted[tag_key(name, "cold")] = image.digest.encode()
        if state in (State.TAG_COLD, State.MANIFEST):
            wanted[manifest_key(name, image.digest)] = image.body
        if state in (State.BLOB_COLD, State.BLOB_DOWNLOAD):
            wanted[blob_key(upstream.layers["cold"].digest)] = upstream.layers["cold"].data
    wait_for(lambda: wanted.keys() <= bucket.listed(), "everything is in the bucket", PUBLISHED_WITHIN_S)
    wait_for(
        lambda: all(bucket.get(key) == body for key, body in wanted.items()), "its content is right", PUBLISHED_WITHIN_S
    )
    wait_for(lambda: not bucket.uploads(), "no upload is unfinished", PUBLISHED_WITHIN_S)
