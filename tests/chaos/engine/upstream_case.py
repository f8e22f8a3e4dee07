"""Cases of a fault of an upstream, and the standard steps of the six states.

Each case injects the fault into its own upstream, ends it there, and waits for its own recovery.
"""

import time
from collections.abc import Callable, Mapping

import attrs

from tests.chaos.engine.case import State
from tests.chaos.engine.case_run import Barriers, CaseRun
from tests.chaos.engine.control_client import ControlClient
from tests.chaos.engine.isolated_upstream import REPO, wait_for
from tests.chaos.engine.limits import FAST_S, PROBE_EVERY_S
from tests.chaos.engine.records import Record
from tests.chaos.engine.run import Run
from tests.chaos.engine.variant import UpstreamVariant
from tests.support.bodies import read_whole
from tests.support.busy_machine import busy_slack_s

CLIENTS = 10  # of a running download
EARLY_BYTES = 128 * 1024  # a download is held this much before the place of a fault that is injected early
REMEMBERED_FROM = 6  # the request from which on the circuit breaker is open
LATER_REQUESTS = 10


class UpstreamCaseRun(CaseRun):
    """One case of an `UpstreamVariant`."""

    def __init__(
        self, run: Run, record: Record, barriers: Barriers, variant: UpstreamVariant, control_client: ControlClient
    ) -> None:
        super().__init__(run, record, barriers)
        self.variant = variant
        self._control_client = control_client

    def follow_steps(self) -> None:
        """Do what the variant says for this state, or what is standard."""
        (self.variant.steps or STEPS)[self.state](self)

    def clean_up(self) -> None:
        """End the fault, whatever the case came to."""
        self.upstream.restore()
        super().clean_up()

    def inject(self) -> None:
        """Begin the fault in this upstream."""
        self.variant.inject(self.upstream, self.state)

    def check_later_requests(self, path: str, truth: bytes) -> None:
        """Once the outage is remembered, stale responses are fast and the upstream gets no requests but probes."""
        for _ in range(REMEMBERED_FROM - 2):
            self.get(path, truth)
        before, began_at = len(self.upstream.requests()), time.monotonic()
        later = [self.get(path, truth) for _ in range(LATER_REQUESTS)]
        sent = len(self.upstream.requests()) - before
        max_probes = 2 + int((time.monotonic() - began_at) / PROBE_EVERY_S)  # a probe may be two requests
        self.check(sent <= max_probes, f"{sent} requests upstream for {LATER_REQUESTS} responses that need no upstream")
        self.check(all(each.header("Warning") for each in later), "not all later responses are marked stale")
        median_s = sorted(each.took_s for each in later)[LATER_REQUESTS // 2]
        # On a busy machine everything is slow: then a response may take as long as a hit does for the control client.
        fast_s = busy_slack_s(FAST_S, self._control_client.recent_median_s())
        self.check(median_s <= fast_s, f"later responses take {median_s:.3f} s, expected {fast_s:.3f} s")
        self.record.seen += f", then {median_s * 1000:.0f} ms"

    def check_recovery(self, path: str, truth: bytes) -> None:
        """Verify that the fault was active, end it, and wait for a fresh and right response within the limit."""
        self.variant.verify(self.upstream, self.state)
        self.upstream.restore()
        self.variant.end(self.upstream)

        def has_recovered() -> bool:
            response = self.get(path, truth)
            return response.is_right_and_whole and not response.header("Warning")

        try:
            took_s = wait_for(has_recovered, "recovered", self.variant.recovery_s)
            self.record.recovery_s = round(took_s, 3)
        except AssertionError as exc:
            self.record.problems.append(f"not recovered after the fault: {exc}")
        if check := self.variant.checks_after_recovery.get(self.state):
            check(self)

    def read_tag_pointer(self) -> bytes:
        """The digest that the local store has for the cached tag."""
        tags = self.deployment.dockyard.storage / "cache" / "manifests" / self.upstream.prefix / REPO / "tags"
        return (tags / "cached").read_bytes()


def _tag_cached(case: UpstreamCaseRun) -> None:
    upstream, variant = case.upstream, case.variant
    path, truth = upstream.manifest_path("cached"), upstream.images["cached"].body
    case.cache(path, upstream.publish_earlier_image().body)
    upstream.publish("cached")
    case.cache(path, truth)  # a tag that has moved before: its pointer must not go back
    pointer = upstream.images["cached"].digest.encode()
    case.check(case.read_tag_pointer() == pointer, "the pointer of the tag has not moved")
    case.wait_for_fault()
    fresh = upstream.move_tag() if variant.moves_tag else upstream.images["cached"]
    case.inject()
    (outcome,) = case.outcomes
    if not variant.moves_tag:
        outcome = attrs.evolve(outcome, is_stored=None)  # it was stored before
    case.request_and_judge(path, truth if outcome.is_stale else fresh.body, outcome, fresh.digest)
    if outcome.is_stale and variant.remembers_outage:
        case.check_later_requests(path, truth)
    if outcome.is_stale or not variant.moves_tag:
        case.check(case.read_tag_pointer() == pointer, "the pointer of the tag has moved")
    case.check_recovery(path, fresh.body)


def _tag_cold(case: UpstreamCaseRun) -> None:
    upstream = case.upstream
    case.cache(upstream.manifest_path("cached"), upstream.images["cached"].body)
    path, truth = upstream.manifest_path("cold"), upstream.images["cold"].body
    case.wait_for_fault()
    case.inject()
    (outcome,) = case.outcomes
    case.request_and_judge(path, truth, outcome, upstream.images["cold"].digest)
    case.check_recovery(path, truth)


def _manifest(case: UpstreamCaseRun) -> None:
    upstream = case.upstream
    case.cache(upstream.digest_path("cached"), upstream.images["cached"].body)
    case.wait_for_fault()
    case.inject()
    for tag, outcome in zip(("cached", "cold"), case.outcomes, strict=True):
        image = upstream.images[tag]
        case.request_and_judge(upstream.digest_path(tag), image.body, outcome, image.digest)
    case.check_recovery(upstream.digest_path("cold"), upstream.images["cold"].body)


def _blob_cached(case: UpstreamCaseRun) -> None:
    path, truth = case.upstream.blob_path("cached"), case.upstream.layers["cached"]
    case.cache(path, truth.data)
    case.wait_for_fault()
    case.inject()
    (outcome,) = case.outcomes
    for _ in range(3):
        case.request_and_judge(path, truth.data, outcome, truth.digest)
    case.check_recovery(path, truth.data)


def _blob_cold(case: UpstreamCaseRun) -> None:
    upstream = case.upstream
    case.cache(upstream.manifest_path("cached"), upstream.images["cached"].body)
    path, truth = upstream.blob_path("cold"), upstream.layers["cold"]
    case.wait_for_fault()
    case.inject()
    (outcome,) = case.outcomes
    case.request_and_judge(path, truth.data, outcome, truth.digest)
    case.check_recovery(path, truth.data)


def _blob_download(case: UpstreamCaseRun) -> None:
    upstream, variant = case.upstream, case.variant
    case.cache(upstream.manifest_path("cached"), upstream.images["cached"].body)
    path, truth = upstream.blob_path("cold"), upstream.layers["cold"]
    case.wait_for_fault()
    is_early = case.state in variant.inject_early
    if is_early:
        case.inject()
    offset = max(0, int(variant.inject_at * truth.size) - (EARLY_BYTES if is_early else 0))
    with case.download(
        CLIENTS, offset=offset, breaks=variant.breaks_download, hides_progress=variant.hides_progress
    ) as crowd:
        if not is_early:
            case.inject()
        began_at = time.monotonic()
        if not variant.stalls_download:
            upstream.resume_download.set()
        responses = case.wait_for_crowd(crowd, began_at)
    (outcome,) = case.outcomes
    case.judge(outcome, responses, truth.digest)
    case.check_recovery(path, read_whole(truth))


STEPS: Mapping[State, Callable[[UpstreamCaseRun], None]] = {
    State.TAG_CACHED: _tag_cached,
    State.TAG_COLD: _tag_cold,
    State.MANIFEST: _manifest,
    State.BLOB_CACHED: _blob_cached,
    State.BLOB_COLD: _blob_cold,
    State.BLOB_DOWNLOAD: _blob_download,
}
