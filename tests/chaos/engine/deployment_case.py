"""Cases of a fault of a whole Dockyard, and standard steps for content that is in the local store.

The fault is injected once, when the cases of all states are ready, and ends once, when all have their responses.
"""

import time
from collections.abc import Callable, Mapping

from tests.chaos.engine.case import State
from tests.chaos.engine.case_run import TIMEOUT_S, Barriers, CaseRun
from tests.chaos.engine.limits import SLACK_S
from tests.chaos.engine.records import Record
from tests.chaos.engine.run import Run
from tests.chaos.engine.variant import DeploymentVariant
from tests.support.busy_machine import is_within

Steps = Callable[["DeploymentCaseRun"], None]


class DeploymentCaseRun(CaseRun):
    """One case of a `DeploymentVariant`."""

    def __init__(self, run: Run, record: Record, barriers: Barriers, variant: DeploymentVariant) -> None:
        super().__init__(run, record, barriers)
        self.variant = variant

    def follow_steps(self) -> None:
        """Do what the variant says for this state, and wait until the fault has ended."""
        self.variant.steps[self.state](self)
        self.barriers.done.wait(TIMEOUT_S)


def check_recovery(run: Run, variant: DeploymentVariant, records: Mapping[State, Record]) -> None:
    """Wait until everything works again, by itself and within the limit."""
    try:
        variant.wait_until_recovered(run)
        took_s = time.monotonic() - run.ended_at
        run.check(is_within(took_s, variant.recovery_s, slack_s=SLACK_S), f"recovered only after {took_s:.1f} s")
        for record in records.values():
            record.recovery_s = round(took_s, 3)
        variant.check_after(run)
    except (AssertionError, OSError) as exc:
        run.problems.append(f"not recovered: {exc}")


def request_cached_tag(case: DeploymentCaseRun) -> None:
    """Request a tag that is in the local store."""
    path, image = case.upstream.manifest_path("cached"), case.upstream.images["cached"]
    case.cache(path, image.body)
    case.wait_for_fault()
    case.request_and_judge(path, image.body, case.outcomes[0], image.digest)


def request_cold_tag(case: DeploymentCaseRun) -> None:
    """Request a tag that only the upstream has."""
    image = case.upstream.images["cold"]
    case.wait_for_fault()
    case.request_and_judge(case.upstream.manifest_path("cold"), image.body, case.outcomes[0], image.digest)


def request_manifests(case: DeploymentCaseRun) -> None:
    """Request two manifests by digest: one that is in the local store, one that only the upstream has."""
    case.cache(case.upstream.digest_path("cached"), case.upstream.images["cached"].body)
    case.wait_for_fault()
    for tag, outcome in zip(("cached", "cold"), case.outcomes, strict=True):
        image = case.upstream.images[tag]
        case.request_and_judge(case.upstream.digest_path(tag), image.body, outcome, image.digest)


def request_cached_blob(case: DeploymentCaseRun) -> None:
    """Request a layer that is in the local store."""
    truth, path = case.upstream.layers["cached"], case.upstream.blob_path("cached")
    case.cache(path, truth.data)
    case.wait_for_fault()
    case.request_and_judge(path, truth.data, case.outcomes[0], truth.digest)


def request_cold_blob(case: DeploymentCaseRun) -> None:
    """Request a layer that only the upstream has."""
    truth = case.upstream.layers["cold"]
    case.wait_for_fault()
    case.request_and_judge(case.upstream.blob_path("cold"), truth.data, case.outcomes[0], truth.digest)


def join_download(case: DeploymentCaseRun) -> None:
    """Ten clients of one download, of which half has been fetched."""
    with case.download() as crowd:
        case.wait_for_fault_during_download()
        responses = case.finish_download(crowd)
    case.judge(case.outcomes[0], responses, case.upstream.layers["cold"].digest)


LOCAL_STEPS: Mapping[State, Steps] = {
    State.TAG_CACHED: request_cached_tag,
    State.TAG_COLD: request_cold_tag,
    State.MANIFEST: request_manifests,
    State.BLOB_CACHED: request_cached_blob,
    State.BLOB_COLD: request_cold_blob,
    State.BLOB_DOWNLOAD: join_download,
}
