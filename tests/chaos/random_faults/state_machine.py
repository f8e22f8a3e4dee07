"""The whole system as a state machine: what a registry, its clients, its machine and its clock can do, in any order.

The model is a dict of truth. After each step: nothing wrong was served whole, what is stored is right, every worker is
small and alive; when nothing is wrong any more, all is fresh again in time; and in the end the history of each tag is
a right one.
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
from tests.support.deployment import CHECK_TIMEOUT_S, eventually
from tests.support.http_client import Response, StreamedResponse, send_request
from tests.support.worker_state import resident_bytes

RECOVERY_S = 5.0
SLACK_S = 3.0  # two cores, shared with everything else that runs
DELAY_S = CHECK_TIMEOUT_S + 1.5
TIMEOUT_S = 12.0
HEALTHZ_S = 2.0
CLOCKS = (-3600, 0, 3600, 86_400)
LASTING = tuple(sorted(set(ALL) - {"P01", "P04", "P08"}))  # the others are rules of their own
_numbers = itertools.count()

tags = st.sampled_from(["one", "two"])
places = st.floats(0, 1, exclude_max=True)


class Machine(RuleBasedStateMachine):
    """One example. All examples live in one system, each in a repository of its own."""

    def __init__(self, system: FaultySystem) -> None:
        super().__init__()
        self.system = system
        self.repo = f"app-{next(_numbers)}"
        self.truth = Truth()
        self.moves: dict[str, list[Move]] = {}
        self.responses: dict[str, list[TimedResponse]] = {}
        self.outages: list[Outage] = []
        self.spoilt: dict[str, bytes] = {}  # keys of the bucket, and the wrong bytes that we put there
        self.variant = contextlib.ExitStack()
        self.kind = ""
        self.began_at = 0.0
        self.frozen: int | None = None
        self.pushed = 0

    # What happens upstream

    @initialize()
    def begin(self) -> None:
        """There is an image of each tag."""
        for tag in ("one", "two"):
            self.push(tag, 0.1)

    @rule(tag=tags, size=places)
    def push(self, tag: str, size: float) -> None:
        """The tag means another image from now on."""
        self.pushed += 1
        layer = Random(f"{self.repo} {self.pushed}").randbytes(1 + int(size * 1_500_000))
        began_at = time.monotonic()
        image = self.system.fake_registry.add_image(self.repo, tag, [layer])
        self.moves.setdefault(tag, []).append(Move(image.digest, began_at, time.monotonic()))
        self.truth.tags.setdefault(tag, set()).add(image.digest)
        self.truth.manifests[image.digest] = image.body
        self.truth.blobs[digest_of(layer)] = layer

    # What clients do

    @rule(tag=tags)
    def pull_tag(self, tag: str) -> None:
        """By tag."""
        began_at = time.monotonic()
        reply = self._get(f"manifests/{tag}")
        if reply is None:
            return
        digest = reply.header("Docker-Content-Digest") or ""
        self._judge(reply, self.truth.manifests.get(digest))
        if reply.status == 200 and reply.is_complete:
            is_right = digest_of(reply.body) == digest
            said = TimedResponse(began_at, time.monotonic(), 200, digest, bool(reply.header("Warning")), is_right)
            self.responses.setdefault(tag, []).append(said)

    @rule(which=places)
    def pull_manifest(self, which: float) -> None:
        """By digest."""
        digest, body = self._choose(self.truth.manifests, which)
        if reply := self._get(f"manifests/{digest}"):
            self._judge(reply, body)

    @rule(which=places)
    def pull_blob(self, which: float) -> None:
        """A layer."""
        digest, body = self._choose(self.truth.blobs, which)
        if reply := self._get(f"blobs/{digest}"):
            self._judge(reply, body)

    @rule(which=places, start=places, length=places)
    def pull_range(self, which: float, start: float, length: float) -> None:
        """A part of one."""
        digest, body = self._choose(self.truth.blobs, which)
        first = int(start * len(body))
        stop = min(len(body), first + 1 + int(length * 100_000))
        if reply := self._get(f"blobs/{digest}", Range=f"bytes={first}-{stop - 1}"):
            self._judge(reply, body, first, stop)

    @rule(which=places)
    def leave(self, which: float) -> None:
        """Begin a layer and be gone."""
        digest, _ = self._choose(self.truth.blobs, which)
        path = f"/v2/up.test/{self.repo}/blobs/{digest}"
        with (
            contextlib.suppress(OSError),
            StreamedResponse(self.system.deployment.address, path, timeout_s=1.0) as download,
        ):
            download.head().read(1)
            download.reset()

    # What goes wrong

    @precondition(lambda self: not self.kind)
    @rule(kind=st.sampled_from(LASTING), seed=st.integers(0, 99))
    def begin_trouble(self, kind: str, seed: int) -> None:
        """A fault that lasts until it is ended."""
        self.kind, self.began_at = kind, time.monotonic()
        self.variant.enter_context(ALL[kind](self.system, Random(seed)))

    @precondition(lambda self: self.kind)
    @rule()
    def end_trouble(self) -> None:
        """It is over, and all is well in time by itself."""
        self.variant.close()
        ended_at = time.monotonic()
        if self.kind in OUTAGES or self.kind.startswith("U"):
            self.outages.append(Outage(self.began_at, ended_at, ended_at + RECOVERY_S + SLACK_S))
        kind, self.kind = self.kind, ""
        if self.frozen is None:
            self._see_recovery(kind, ended_at)

    @rule(which=places)
    def kill_worker(self, which: float) -> None:
        """Kill -9."""
        if pids := self.system.deployment.dockyard.worker_pids():
            send(pids[int(which * len(pids))], signal.SIGKILL)

    @precondition(lambda self: self.frozen is None)
    @rule(which=places)
    def freeze_worker(self, which: float) -> None:
        """SIGSTOP."""
        if pids := self.system.deployment.dockyard.worker_pids():
            self.frozen = pids[int(which * len(pids))]
            send(self.frozen, signal.SIGSTOP)

    @precondition(lambda self: self.frozen is not None)
    @rule()
    def thaw_worker(self) -> None:
        """SIGCONT, if it has not been replaced meanwhile."""
        if self.frozen in self.system.deployment.dockyard.worker_pids():
            send(self.frozen, signal.SIGCONT)
        self.frozen = None

    @rule(offset_s=st.sampled_from(CLOCKS))
    def jump_clock(self, offset_s: int) -> None:
        """The wall clock is wrong from now on."""
        self.system.clock.set(offset_s)

    @rule(which=places, everywhere=st.booleans())
    def expire(self, which: float, everywhere: bool) -> None:  # noqa: FBT001  drawn by name
        """A lifecycle rule, or somebody with a broom."""
        digest, _ = self._choose(self.truth.blobs, which)
        self.system.place.remove(blob_key(digest))
        if everywhere:
            self._sweep(digest)

    @rule(which=places)
    def spoil(self, which: float) -> None:
        """Other bytes of the same length in the bucket, and nothing in the local store."""
        digest, body = self._choose(self.truth.blobs, which)
        self.spoilt[blob_key(digest)] = wrong = bytes([body[0] ^ 1]) + body[1:]
        self.system.place.put(blob_key(digest), wrong)
        self._sweep(digest)

    # What must hold

    @invariant()
    def stored_is_right(self) -> None:
        """I1: every file of the local store is what its name says."""
        assert audit_directory(self.system.deployment.dockyard.storage) == []

    @invariant()
    def is_alive_and_small(self) -> None:
        """I5, I9: no worker is too large, and the liveness check is answered."""
        for pid in self.system.deployment.dockyard.worker_pids():
            assert resident_bytes(pid) <= MAX_WORKER_BYTES
        assert self.system.deployment.dockyard.is_running
        if self.frozen is None:
            eventually(self._is_healthy, "alive", HEALTHZ_S + SLACK_S)

    def teardown(self) -> None:
        """All variants end, all is well again, and everything is judged once more."""
        self.variant.close()
        self.thaw_worker()
        self.system.clock.set(0)
        if not self.truth.tags:
            return
        ended_at = time.monotonic()
        if self.kind:
            self.outages.append(Outage(self.began_at, ended_at, ended_at + RECOVERY_S + SLACK_S))
        self._see_recovery(self.kind, ended_at)
        found = []
        for tag, responses in self.responses.items():
            found += find_violations(self.moves[tag], responses, self.outages, DELAY_S)
        assert found == []
        ours = {
            key for key, body in self.spoilt.items() if key in self.system.place.listed() and self._holds(key, body)
        }
        assert [each for each in self.system.place.audit() if each.partition(":")[0] not in ours] == []

    # Details

    def _get(self, path: str, **headers: str) -> Response | None:
        """None when there was no answer: never without a reason."""
        try:
            return send_request(
                self.system.deployment.address, f"/v2/up.test/{self.repo}/{path}", headers, timeout_s=TIMEOUT_S
            )
        except OSError:
            return None

    def _judge(self, reply: Response, body: bytes | None, start: int = 0, stop: int | None = None) -> None:
        assert find_wrong(reply, body, start, stop) == ""

    def _choose(self, truth: dict[str, bytes], which: float) -> tuple[str, bytes]:
        digest = list(truth)[int(which * len(truth))]
        return digest, truth[digest]

    def _sweep(self, digest: str) -> None:
        for path in self.system.deployment.stored_files(digest):
            path.unlink(missing_ok=True)

    def _holds(self, key: str, body: bytes) -> bool:
        return self.system.place.get(key) == body

    def _is_healthy(self) -> bool:
        with contextlib.suppress(OSError):
            return send_request(self.system.deployment.address, "/healthz", timeout_s=HEALTHZ_S).status == 200
        return False

    def _see_recovery(self, kind: str, ended_at: float) -> None:
        """I7: the first fresh and right answer comes in time."""
        tag, moves = next(iter(self.moves.items()))

        def is_fresh() -> bool:
            reply = self._get(f"manifests/{tag}")
            if reply is None or reply.status != 200 or reply.header("Warning"):
                return False
            assert reply.header("Docker-Content-Digest") == moves[-1].digest
            return True

        eventually(
            is_fresh, f"well again after {kind or 'variant'}", ended_at + RECOVERY_S + SLACK_S - time.monotonic()
        )
