"""The wall clock of Dockyard jumps while it runs; that of the bucket is right: P08."""

import time
from datetime import datetime

import attrs

from tests.chaos.engine.case import State
from tests.chaos.engine.deployment_case import LOCAL_STEPS
from tests.chaos.engine.fake_clock import NOTICED_WITHIN_S, FakeClock
from tests.chaos.engine.isolated_upstream import wait_for
from tests.chaos.engine.limits import SLACK_S
from tests.chaos.engine.outcomes import UNAFFECTED
from tests.chaos.engine.run import Run
from tests.chaos.engine.variant import DeploymentVariant, Fault
from tests.chaos.faults.s3_outages import WITHOUT_BUCKET
from tests.chaos.faults.s3_steps import (
    S3_STEPS,
    fill_bucket,
    wait_until_bucket_is_used,
    wait_until_published,
)
from tests.support.http_client import send_request

HOUR_S = 3600
DAY_S = 24 * HOUR_S
TOLERANCE_S = 60.0


def _use_fake_clock(run: Run) -> None:
    run.environment.clock = FakeClock(run.directory)
    run.environment.environ |= run.environment.clock.environ
    run.data["workers"] = []


def _offset(run: Run) -> float:
    """How wrong the clock of the workers is, by the time of the last line in the log.

    The Date header does not go back with the clock: the HTTP server updates it only when it is older than the clock.
    """
    send_request(run.deployment.address, run.control.blob_path("cached"))
    last = run.deployment.dockyard.read_log().rstrip().rpartition("\n")[2]
    return datetime.fromisoformat(last.split(" ", 1)[0]).timestamp() - time.time()


def _is_offset(run: Run, offset_s: int) -> bool:
    return abs(_offset(run) - offset_s) < TOLERANCE_S


def _jump(offset_s: int) -> DeploymentVariant:
    def inject(run: Run) -> None:
        assert run.environment.clock is not None
        run.data["workers"] = run.deployment.dockyard.worker_pids()
        run.environment.clock.set(offset_s)
        wait_for(lambda: _is_offset(run, offset_s), "the clock is wrong")
        time.sleep(NOTICED_WITHIN_S)  # the other workers

    def verify(run: Run) -> None:
        assert _is_offset(run, offset_s), "the clock is right"
        assert run.deployment.dockyard.worker_pids() == run.data["workers"], "the watchdog has replaced a worker"

    hours = offset_s // HOUR_S
    return DeploymentVariant(
        f"{hours:+d} h while it runs",
        steps=LOCAL_STEPS,
        outcomes=UNAFFECTED,
        prepare=_use_fake_clock,
        inject=inject,
        verify=verify,
        end=_set_right,
        wait_until_recovered=_wait_until_fresh,
    )


def _set_right(run: Run) -> None:
    assert run.environment.clock is not None
    run.environment.clock.set(0)


def _wait_until_fresh(run: Run) -> None:
    """Wait until the clock is right again, and check that a tag is fresh."""
    wait_for(lambda: _is_offset(run, 0), "the clock is right")
    time.sleep(NOTICED_WITHIN_S)  # the other workers
    upstream = run.upstreams[State.TAG_CACHED]
    response = send_request(run.deployment.address, upstream.manifest_path("cached"))
    assert (response.status, response.header("Warning")) == (200, None)
    assert 0 <= int(response.header("Age") or 0) <= SLACK_S + NOTICED_WITHIN_S, f"Age: {response.header('Age')}"


def _with_bucket(variant: DeploymentVariant) -> DeploymentVariant:
    """With a bucket, which rejects signatures of a wrong time."""

    def prepare(run: Run) -> None:
        _use_fake_clock(run)
        fill_bucket(run)

    def inject(run: Run) -> None:
        variant.inject(run)
        run.s3_proxy.requests.clear()

    def verify(run: Run) -> None:
        variant.verify(run)
        copies = run.s3_proxy.counted()["PUT copy"]
        run.check(copies <= 1, f"{copies} objects were touched")

    return attrs.evolve(
        variant,
        name=f"{variant.name}, with a bucket",
        steps=S3_STEPS,
        outcomes=WITHOUT_BUCKET,
        prepare=prepare,
        inject=inject,
        verify=verify,
        wait_until_recovered=wait_until_bucket_is_used,
        check_after=wait_until_published,
        has_bucket=True,
        recovery_s=60.0,
        reason="the bucket rejects requests with a wrong time, as in S07",
    )


_JUMPS = (_jump(HOUR_S), _jump(-HOUR_S), _jump(DAY_S))
WRONG_CLOCK = Fault("P08", "The wall clock jumps", (*_JUMPS, *map(_with_bucket, _JUMPS)))

FAULTS = (WRONG_CLOCK,)
