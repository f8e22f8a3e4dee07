"""Section P of the matrix, the clock: Dockyard's wall clock is wrong, or jumps while it runs; the store's is right."""

import time
from datetime import datetime

import attrs

from tests.chaos.bucket_outages import WITHOUT
from tests.chaos.bucket_scenes import AS_EVER, fill_bucket, is_published, is_used_again
from tests.chaos.bucket_scenes import TELL as TELL_WITH_BUCKET
from tests.chaos.cells import State
from tests.chaos.clock import NOTICED_WITHIN_S, Clock
from tests.chaos.lanes import wait_for
from tests.chaos.limits import SLACK_S
from tests.chaos.scenes import Fault, Part, Plot, Scene, Tell
from tests.support.http_client import send_request

HOUR_S = 3600
DAY_S = 24 * HOUR_S
SKEW_SEEN_S = 60.0


def _right_clock(scene: Scene) -> None:
    scene.clock = Clock(scene.directory)
    scene.environ |= scene.clock.environ
    scene.props["workers"] = []


def _tag_cached(part: Part) -> None:
    path, image = part.lane.manifest_path("cached"), part.lane.images["cached"]
    part.warm(path, image.body)
    part.meet()
    part.see(path, image.body, part.outcomes[0], image.digest)


def _manifest(part: Part) -> None:
    part.warm(part.lane.digest_path("cached"), part.lane.images["cached"].body)
    part.meet()
    for tag, outcome in zip(("cached", "cold"), part.outcomes, strict=True):
        image = part.lane.images[tag]
        part.see(part.lane.digest_path(tag), image.body, outcome, image.digest)


def _blob_cached(part: Part) -> None:
    truth, path = part.lane.layers["cached"], part.lane.blob_path("cached")
    part.warm(path, truth.data)
    part.meet()
    part.see(path, truth.data, part.outcomes[0], truth.digest)


TELL: dict[State, Tell] = {
    **TELL_WITH_BUCKET,
    State.TAG_CACHED: _tag_cached,
    State.MANIFEST: _manifest,
    State.BLOB_CACHED: _blob_cached,
}


def _offset(scene: Scene) -> float:
    """How wrong the clock is that the workers go by, as their last line in the log tells.

    (The Date of an answer does not go back with the clock: the HTTP server makes it only when it is older than now.)
    """
    send_request(scene.deployment.address, scene.control.blob_path("cached"))
    last = scene.deployment.dockyard.read_log().rstrip().rpartition("\n")[2]
    return datetime.fromisoformat(last.split(" ", 1)[0]).timestamp() - time.time()


def _is_offset(scene: Scene, offset_s: int) -> bool:
    return abs(_offset(scene) - offset_s) < SKEW_SEEN_S


def _jump(offset_s: int) -> Plot:
    def strike(scene: Scene) -> None:
        assert scene.clock is not None
        scene.props["workers"] = scene.deployment.dockyard.worker_pids()
        scene.clock.set(offset_s)
        wait_for(lambda: _is_offset(scene, offset_s), "the clock is wrong", NOTICED_WITHIN_S * 5)
        time.sleep(NOTICED_WITHIN_S)  # the other workers

    def prove(scene: Scene) -> None:
        assert _is_offset(scene, offset_s), "the clock is right"
        assert scene.deployment.dockyard.worker_pids() == scene.props["workers"], "a worker was taken for frozen"

    hours = offset_s // HOUR_S
    return Plot(
        f"{hours:+d} h while it runs",
        tell=TELL,
        outcomes=AS_EVER,
        prepare=_right_clock,
        strike=strike,
        prove=prove,
        mend=_mend,
        recover=_is_well,
    )


def _mend(scene: Scene) -> None:
    assert scene.clock is not None
    scene.clock.set(0)


def _is_well(scene: Scene) -> None:
    """The clock is right again, and a tag is fresh."""
    wait_for(lambda: _is_offset(scene, 0), "the clock is right", NOTICED_WITHIN_S * 5)
    time.sleep(NOTICED_WITHIN_S)  # the other workers
    lane = scene.lanes[State.TAG_CACHED]
    reply = send_request(scene.deployment.address, lane.manifest_path("cached"))
    assert (reply.status, reply.header("Warning")) == (200, None)
    assert 0 <= int(reply.header("Age") or 0) <= SLACK_S + NOTICED_WITHIN_S, f"Age: {reply.header('Age')}"


def _with_bucket(plot: Plot) -> Plot:
    """The store, whose clock is right, refuses what is signed by a wrong one."""

    def prepare(scene: Scene) -> None:
        _right_clock(scene)
        fill_bucket(scene)

    def strike(scene: Scene) -> None:
        plot.strike(scene)
        scene.store.requests.clear()

    def prove(scene: Scene) -> None:
        plot.prove(scene)
        copies = scene.store.counted()["PUT copy"]
        scene.check(copies <= 1, f"{copies} objects were touched")

    return attrs.evolve(
        plot,
        name=f"{plot.name}, with a bucket",
        tell=TELL_WITH_BUCKET,
        outcomes=WITHOUT,
        prepare=prepare,
        strike=strike,
        prove=prove,
        recover=is_used_again,
        after=is_published,
        has_bucket=True,
        recovery_s=60.0,
        reason="the store refuses a wrong clock: as S07",
    )


_JUMPS = (_jump(HOUR_S), _jump(-HOUR_S), _jump(DAY_S))
WRONG_CLOCK = Fault("P08", "The wall clock jumps", (*_JUMPS, *map(_with_bucket, _JUMPS)))

FAULTS = (WRONG_CLOCK,)
