"""Dockyard with its registry, clients, processes, bucket and clock as a Hypothesis state machine.

The model is what was pushed. After each step: no complete response was wrong, what is stored is right, every worker is
alive and uses little memory. When no fault is active any more, tags are fresh again in time. At the end, the history of
each tag breaks no rule of `tag_history`.
"""

import contextlib
import itertools
import signal
import time
from random import Random

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.chaos.engine.audit import audit_directory
from tests.chaos.engine.memory import MAX_WORKER_BYTES
from tests.chaos.load.constant_rate_client import TimedResponse
from tests.chaos.random_faults.injector import ALL, OUTAGES, FaultySystem, send
from tests.chaos.random_faults.pull_clients import Truth, find_wrong
from tests.chaos.random_faults.tag_history import Move, Outage, find_violations
from tests.s3.service.bucket_view import blob_key
from tests.support.bodies import digest_of
from tests.support.busy_machine import busy_slack_s
from tests.support.deployment import CHECK_TIMEOUT_S, eventually
from tests.support.http_client import Response, StreamedResponse, send_request
from tests.support.worker_state import resident_bytes

RECOVERY_S = 5.0
SLACK_S = 3.0
DELAY_S = CHECK_TIMEOUT_S + 1.5
TIMEOUT_S = 12.0
HEALTHZ_S = 2.0
MAX_KILLS = 3  # per example: the supervisor stops the server when workers keep dying right after their start
CLOCKS = (-3600, 0, 3600, 86_400)
LASTING = tuple(sorted(set(ALL) - {"P01", "P04", "P08"}))  # the others have rules of their own
_numbers = itertools.count()

tags = st.sampled_from(["one", "two"])
fractions = st.floats(0, 1, exclude_max=True)


class Machine(RuleBasedStateMachine):
    """One example. All examples share one system; each has a repository of its own."""

    def __init__(self, system: FaultySystem) -> None:
        super().__init__()
        self.system = system
        self.repo = f"app-{next(_numbers)}"
        self.truth = Truth()
        self.moves: dict[str, list[Move]] = {}
        self.responses: dict[str, list[TimedResponse]] = {}
        self.outages: list[Outage] = []
        self.fault = contextlib.ExitStack()
        self.kind = ""
        self.began_at = 0.0
        self.stopped: int | None = None
        self.has_stopped = False  # preconditions must not depend on whether there was a worker to stop
        self.pushed = 0
        self.kills = 0

    # Upstream

    @initialize()
    def begin(self) -> None:
        """Push an image for each tag."""
        for tag in ("one", "two"):
            self.push(tag, 0.1)

    @rule(tag=tags, size=fractions)
    def push(self, tag: str, size: float) -> None:
        """Let the tag point to another image from now on."""
        self.pushed += 1
        layer = Random(f"{self.repo} {self.pushed}").randbytes(1 + int(size * 1_500_000))
        began_at = time.monotonic()
        image = self.system.fake_registry.add_image(self.repo, tag, [layer])
        self.moves.setdefault(tag, []).append(Move(image.digest, began_at, time.monotonic()))
        self.truth.tags.setdefault(tag, set()).add(image.digest)
        self.truth.manifests[image.digest] = image.body
        self.truth.blobs[digest_of(layer)] = layer

    # Clients

    @rule(tag=tags)
    def pull_tag(self, tag: str) -> None:
        """Pull a manifest by tag."""
        began_at = time.monotonic()
        response = self._get(f"manifests/{tag}")
        if response is None:
            return
        digest = response.header("Docker-Content-Digest") or ""
        self._judge(response, self.truth.manifests.get(digest))
        if response.status == 200 and response.is_complete:
            is_right = digest_of(response.body) == digest
            is_stale = bool(response.header("Warning"))
            timed = TimedResponse(began_at, time.monotonic(), 200, digest, is_stale, is_right)
            self.responses.setdefault(tag, []).append(timed)

    @rule(which=fractions)
    def pull_manifest(self, which: float) -> None:
        """Pull a manifest by digest."""
        digest, body = self._choose(self.truth.manifests, which)
        if response := self._get(f"manifests/{digest}"):
            self._judge(response, body)

    @rule(which=fractions)
    def pull_blob(self, which: float) -> None:
        """Pull a layer."""
        digest, body = self._choose(self.truth.blobs, which)
        if response := self._get(f"blobs/{digest}"):
            self._judge(response, body)

    @rule(which=fractions, start=fractions, length=fractions)
    def pull_range(self, which: float, start: float, length: float) -> None:
        """Pull a range of a layer."""
        digest, body = self._choose(self.truth.blobs, which)
        first = int(start * len(body))
        stop = min(len(body), first + 1 + int(length * 100_000))
        if response := self._get(f"blobs/{digest}", Range=f"bytes={first}-{stop - 1}"):
            self._judge(response, body, first, stop)

    @rule(which=fractions)
    def disconnect(self, which: float) -> None:
        """Request a layer and disconnect after one byte."""
        digest, _ = self._choose(self.truth.blobs, which)
        path = f"/v2/up.test/{self.repo}/blobs/{digest}"
        with (
            contextlib.suppress(OSError),
            StreamedResponse(self.system.deployment.address, path, timeout_s=1.0) as download,
        ):
            download.head().read(1)
            download.reset()

    # Faults

    @precondition(lambda self: not self.kind)
    @rule(kind=st.sampled_from(LASTING), seed=st.integers(0, 99))
    def begin_fault(self, kind: str, seed: int) -> None:
        """Begin a fault that lasts until `end_fault`."""
        self.kind, self.began_at = kind, time.monotonic()
        self.fault.enter_context(ALL[kind](self.system, Random(seed)))

    @precondition(lambda self: self.kind)
    @rule()
    def end_fault(self) -> None:
        """End the fault; Dockyard recovers in time by itself."""
        self.fault.close()
        ended_at = time.monotonic()
        if self.kind in OUTAGES or self.kind.startswith("U"):
            self.outages.append(Outage(self.began_at, ended_at, ended_at + RECOVERY_S + busy_slack_s(SLACK_S)))
        kind, self.kind = self.kind, ""
        if self.stopped is None:
            self._wait_for_recovery(kind, ended_at)

    @precondition(lambda self: self.kills < MAX_KILLS)
    @rule(which=fractions)
    def kill_worker(self, which: float) -> None:
        """Kill a worker."""
        self.kills += 1
        if pids := self.system.deployment.dockyard.worker_pids():
            send(pids[int(which * len(pids))], signal.SIGKILL)

    @precondition(lambda self: not self.has_stopped)
    @rule(which=fractions)
    def stop_worker(self, which: float) -> None:
        """Stop a worker."""
        self.has_stopped = True
        if pids := self.system.deployment.dockyard.worker_pids():
            self.stopped = pids[int(which * len(pids))]
            send(self.stopped, signal.SIGSTOP)

    @precondition(lambda self: self.has_stopped)
    @rule()
    def resume_worker(self) -> None:
        """Resume the worker, if it has not been replaced."""
        if self.stopped in self.system.deployment.dockyard.worker_pids():
            send(self.stopped, signal.SIGCONT)
        self.stopped, self.has_stopped = None, False

    @rule(offset_s=st.sampled_from(CLOCKS))
    def jump_clock(self, offset_s: int) -> None:
        """Let the wall clock be wrong from now on."""
        self.system.clock.set(offset_s)

    @rule(which=fractions, everywhere=st.booleans())
    def expire(self, which: float, everywhere: bool) -> None:  # noqa: FBT001  drawn by name
        """Remove a blob from the bucket; with `everywhere`, from the local store, too."""
        digest, _ = self._choose(self.truth.blobs, which)
        self.system.bucket_view.remove(blob_key(digest))
        if everywhere:
            self._sweep(digest)

    @rule(which=fractions)
    def damage(self, which: float) -> None:
        """Put wrong bytes of the same length into the bucket, and remove the blob from the local store."""
        digest, body = self._choose(self.truth.blobs, which)
        self.system.damaged[blob_key(digest)] = wrong = bytes([body[0] ^ 1]) + body[1:]
        self.system.bucket_view.put(blob_key(digest), wrong)
        self._sweep(digest)

    # Invariants

    @invariant()
    def stored_is_right(self) -> None:
        """Every file of the local store is what its name says."""
        assert audit_directory(self.system.deployment.dockyard.storage) == []

    @invariant()
    def is_alive_and_small(self) -> None:
        """No worker uses too much memory, and the liveness check succeeds."""
        for pid in self.system.deployment.dockyard.worker_pids():
            assert resident_bytes(pid) <= MAX_WORKER_BYTES
        assert self.system.deployment.dockyard.is_running
        if self.stopped is None:
            eventually(self._is_healthy, "alive", HEALTHZ_S, slack_s=SLACK_S)

    def teardown(self) -> None:
        """End all faults, wait for the recovery, and check everything once more."""
        self.fault.close()
        self.resume_worker()
        self.system.clock.set(0)
        if not self.truth.tags:
            return
        ended_at = time.monotonic()
        if self.kind:
            self.outages.append(Outage(self.began_at, ended_at, ended_at + RECOVERY_S + busy_slack_s(SLACK_S)))
        self._wait_for_recovery(self.kind, ended_at)
        found = []
        for tag, responses in self.responses.items():
            found += find_violations(self.moves[tag], responses, self.outages, DELAY_S)
        assert found == []
        bucket_view = self.system.bucket_view
        ours = {
            key for key, body in self.system.damaged.items() if key in bucket_view.listed() and self._holds(key, body)
        }
        problems = [each for each in bucket_view.audit() if each.partition(":")[0] not in ours]
        assert problems == [], problems

    def _get(self, path: str, **headers: str) -> Response | None:
        """Send a GET; None if there is no response."""
        try:
            return send_request(
                self.system.deployment.address, f"/v2/up.test/{self.repo}/{path}", headers, timeout_s=TIMEOUT_S
            )
        except OSError:
            return None

    def _judge(self, response: Response, body: bytes | None, start: int = 0, stop: int | None = None) -> None:
        assert find_wrong(response, body, start, stop) == ""

    def _choose(self, truth: dict[str, bytes], which: float) -> tuple[str, bytes]:
        digest = list(truth)[int(which * len(truth))]
        return digest, truth[digest]

    def _sweep(self, digest: str) -> None:
        for path in self.system.deployment.stored_files(digest):
            path.unlink(missing_ok=True)

    def _holds(self, key: str, body: bytes) -> bool:
        return self.system.bucket_view.get(key) == body

    def _is_healthy(self) -> bool:
        with contextlib.suppress(OSError):
            return send_request(self.system.deployment.address, "/healthz", timeout_s=HEALTHZ_S).status == 200
        return False

    def _wait_for_recovery(self, kind: str, ended_at: float) -> None:
        """Wait for a fresh and right response within the limit."""
        tag, moves = next(iter(self.moves.items()))

        def is_fresh() -> bool:
            response = self._get(f"manifests/{tag}")
            if response is None or response.status != 200 or response.header("Warning"):
                return False
            assert response.header("Docker-Content-Digest") == moves[-1].digest
            return True

        within_s = ended_at + RECOVERY_S - time.monotonic()
        eventually(is_fresh, f"recovered after {kind or 'a fault'}", within_s, slack_s=SLACK_S)
