"""What happens in a cell: what was there before, the fault, what the clients see of it, and how it ends.

A `Story` is told in one lane. Whatever is not as it must be becomes a line of its record; nothing is raised.
"""

import contextlib
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import attrs

from tests.chaos.cells import Record, State
from tests.chaos.lanes import Lane, wait_for
from tests.chaos.limits import FAST_S, PACE, PROBE_EVERY_S, RECOVERY_S, SLACK_S, Limits
from tests.chaos.outcomes import Got, Outcome, Seen, judge_always
from tests.chaos.resolver import NameServer
from tests.support.bodies import read_whole
from tests.support.deployment import Deployment
from tests.support.http_client import Crowd, send_request

FOLLOWERS = 9
EARLIER_BYTES = 128 * 1024
UNSEEN_BYTES = 64 * 1024  # the tail that is held back, and what is under way
BLIND_S = 0.5  # nothing tells when the last of ten clients is attached to a download that says nothing yet
STORED_WITHIN_S = 5.0
WARM_WITHIN_S = 20.0
PATIENCE_S = 100.0
REMEMBERED_FROM = 6  # the request from which on a breaker answers
LATER = 10
NEVER_TOLD = ("127.0.0.", "localhost", "X-Amz", "Signature", "Traceback", "canary")


def nothing(*_: Any) -> None:
    """Nothing to do."""


@attrs.frozen
class World:
    """What a variant needs around its Dockyard: more environment, a command that starts it, and so on."""

    environ: Mapping[str, str] = attrs.field(factory=dict)
    wrapper: Sequence[str] = ()
    names: NameServer | None = None
    directory: Path | None = None


@contextlib.contextmanager
def plain_world(_: Path) -> Iterator[World]:
    """Nothing but Dockyard."""
    yield World()


@attrs.frozen
class Trouble:
    """One variant of a fault.

    `strike` begins it in a lane; `Lane.mend` ends it, and `mend` ends what that does not know of. `prove` raises
    unless the lane is struck. `outcomes` has what each state's clients must see: one outcome, and for a manifest by
    digest two (cached, not cached). `early`: states in which it must be there before the request is sent.
    `more` and `after` are checks of single states, after the first answers and after the recovery.
    """

    name: str
    strike: Callable[[Lane, State], None]
    prove: Callable[[Lane, State], None]
    outcomes: Mapping[State, tuple[Outcome, ...]]
    prepare: Callable[[Lane, World], None] = nothing
    mend: Callable[[Lane], None] = nothing
    early: frozenset[State] = frozenset()
    breaks: bool = False  # a layer in progress is broken off when it strikes
    stalls: bool = False  # a layer in progress stays where it is when it strikes
    moves_tag: bool = False  # the cached tag means another image from then on, so that a body is asked for
    point: float = 0.5  # the part of a layer in progress that has landed when it strikes
    is_blind: bool = False  # clients see nothing of a layer in progress before all of it is there
    more: Mapping[State, Callable[["Story", Seen], None]] = attrs.field(factory=dict)
    after: Mapping[State, Callable[["Story"], None]] = attrs.field(factory=dict)  # all is well again
    workers: int = 2
    layer_bytes: int = 4 * 1024 * 1024
    is_direct: bool = False
    stays_stale: bool = True  # the breaker, or a rate limit, answers from the sixth request on
    recovery_s: float = RECOVERY_S
    settings: Mapping[str, Any] = attrs.field(factory=dict)
    world: Callable[[Path], AbstractContextManager[World]] = plain_world  # given a directory
    reason: str = ""  # where the design decides otherwise than the table


@attrs.frozen
class Fault:
    """A row of the matrix. The first variant runs on every change, the others by command."""

    id: str
    title: str
    variants: tuple[Trouble, ...]


class Story:
    """One cell, told in its lane.

    `met` is where all stories of a fault wait for each other before it strikes; `pace_s` is how long a hit takes
    elsewhere meanwhile.
    """

    def __init__(
        self,
        deployment: Deployment,
        lane: Lane,
        trouble: Trouble,
        record: Record,
        limits: Limits,
        met: threading.Barrier,
        pace_s: Callable[[], float],
    ) -> None:
        self.deployment = deployment
        self.lane = lane
        self.trouble = trouble
        self.record = record
        self.limits = limits
        self.struck_at = 0.0
        self.mended_at = 0.0
        self._met = met
        self._pace_s = pace_s
        self._has_met = False

    @property
    def state(self) -> State:
        return self.record.cell.state

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        return self.trouble.outcomes[self.state]

    def tell(self) -> None:
        """All of it."""
        try:
            _TELL[self.state](self)
        except Exception:  # noqa: BLE001  whatever it is, it is this cell's
            if not self._has_met:
                self._met.abort()  # the others need not wait
            self.record.problems.append(traceback.format_exc(limit=-3))
        finally:
            self.lane.mend()
            self.lane.half.set()

    # What may happen

    def warm(self, path: str, truth: bytes) -> None:
        """Have something cached."""
        got = self.get(path, truth)
        deadline = time.monotonic() + WARM_WITHIN_S
        while (got.status, got.is_whole, got.is_right) != (200, True, True):  # short limits, on a machine with no time
            assert time.monotonic() < deadline, f"{path}: {got.describe()}"
            time.sleep(0.2)
            got = self.get(path, truth)
        digest = got.header("Docker-Content-Digest") or ""
        wait_for(lambda: self.is_stored(digest), f"{path} is stored", STORED_WITHIN_S)

    def meet(self) -> None:
        """Wait until all lanes are ready for the fault."""
        self._met.wait(PATIENCE_S)
        self._has_met = True
        self.lane.fake_registry.clear_exchanges()

    def strike(self) -> None:
        """The fault begins."""
        self.trouble.strike(self.lane, self.state)
        self.struck_at = time.monotonic()

    def get(self, path: str, truth: bytes) -> Got:
        """One client."""
        got = Got.of(send_request(self.deployment.address, path, timeout_s=PATIENCE_S), truth)
        self.check_always(got)
        return got

    def see(self, path: str, truth: bytes, outcome: Outcome, digest: str) -> Seen:
        """One client, and what it cost; judged."""
        before = len(self.lane.seen())
        got = self.get(path, truth)
        return self.judge(outcome, (got,), digest, before)

    def judge(self, outcome: Outcome, got: tuple[Got, ...], digest: str, before: int = 0) -> Seen:
        """Compare what clients had with what they must have had."""
        if any(each.status == 200 and each.is_whole and not each.header("Warning") for each in got):
            self._wait_stored(digest)
        requests = tuple(self.lane.seen())[before:]
        seen = Seen(got, requests, self.is_stored(digest))
        self.record.problems += outcome.judge(seen)
        if digest in (layer.digest for layer in self.lane.layers.values()):
            self.record.problems += outcome.judge_bytes(seen, self.lane.layers["cold"].size)
        self.record.seen += f"{' / ' if self.record.seen else ''}{seen.describe()}"
        self.record.requests += len(requests)
        self.record.received_bytes += sum(each.sent_bytes for each in requests)
        if more := self.trouble.more.get(self.state):
            more(self, seen)
        return seen

    def is_stored(self, digest: str) -> bool:
        """Whether the local store has it."""
        return bool(self.deployment.stored_files(digest))

    def stays_fast(self, path: str, truth: bytes) -> None:
        """Once it is known to be down, stale answers come at once and the upstream is left alone but for probes."""
        for _ in range(REMEMBERED_FROM - 2):
            self.get(path, truth)
        before, began_at = len(self.lane.seen()), time.monotonic()
        later = [self.get(path, truth) for _ in range(LATER)]
        asked = len(self.lane.seen()) - before
        probes = 2 + int((time.monotonic() - began_at) / PROBE_EVERY_S)  # a probe may be two requests
        self.record.check(asked <= probes, f"{asked} requests upstream in {LATER} answers that should come from memory")
        self.record.check(all(got.header("Warning") for got in later), "not all later answers are marked stale")
        median = sorted(got.took_s for got in later)[LATER // 2]
        fast = max(FAST_S, PACE * self._pace_s())  # where everything is slow, no slower than a hit elsewhere
        self.record.check(median <= fast, f"later answers take {median:.3f} s, expected {fast:.3f} s")
        self.record.seen += f", then {median * 1000:.0f} ms"

    def finish(self, path: str, truth: bytes) -> None:
        """The fault is shown to have been there, and ends; then all is well again within its time, by itself."""
        self.trouble.prove(self.lane, self.state)
        self.lane.mend()
        self.trouble.mend(self.lane)
        self.mended_at = time.monotonic()
        limit = self.trouble.recovery_s + SLACK_S

        def is_well() -> bool:
            got = self.get(path, truth)
            return got.status == 200 and got.is_whole and got.is_right and not got.header("Warning")

        try:
            self.record.recovery_s = round(wait_for(is_well, "well again", limit), 3)
        except AssertionError:
            self.record.problems.append(f"not well again {limit:.1f} s after the fault")
        if after := self.trouble.after.get(self.state):
            after(self)

    def _wait_stored(self, digest: str) -> None:
        deadline = time.monotonic() + STORED_WITHIN_S
        while not self.is_stored(digest) and time.monotonic() < deadline:
            time.sleep(0.02)

    def check_always(self, got: Got) -> None:
        """What holds for every answer; and the form of an error (I8)."""
        reply = got.reply
        self.record.problems += [each for each in judge_always(got) if each not in self.record.problems]
        if reply is None or got.status < 400:
            return
        try:
            assert reply.error, "an error without a code"
            text = reply.body.decode() + str(reply.headers)
            told = [secret for secret in (*NEVER_TOLD, str(self.deployment.dockyard.storage)) if secret in text]
            assert not told, f"an error tells {told}"
        except (AssertionError, ValueError, KeyError) as exc:
            self.record.problems.append(f"the form of an error: {exc}")


# The six states


def _tag_cached(story: Story) -> None:
    lane = story.lane
    path, truth = lane.manifest_path("cached"), lane.images["cached"].body
    story.warm(path, lane.show_earlier().body)
    lane.show("cached")
    story.warm(path, truth)  # a tag that has moved before: its pointer must not go back
    pointer = lane.images["cached"].digest.encode()
    story.record.check(_pointer(story) == pointer, "the pointer of the tag has not moved")
    story.meet()
    fresh = lane.move_tag() if story.trouble.moves_tag else lane.images["cached"]
    story.strike()
    (outcome,) = story.outcomes
    if not story.trouble.moves_tag:
        outcome = attrs.evolve(outcome, is_stored=None)  # it was before
    story.see(path, truth if outcome.is_stale else fresh.body, outcome, fresh.digest)
    if outcome.is_stale and story.trouble.stays_stale:
        story.stays_fast(path, truth)
    if outcome.is_stale or not story.trouble.moves_tag:
        story.record.check(_pointer(story) == pointer, "the pointer of the tag has moved")
    story.finish(path, fresh.body)


def _tag_cold(story: Story) -> None:
    lane = story.lane
    story.warm(lane.manifest_path("cached"), lane.images["cached"].body)
    path, truth = lane.manifest_path("cold"), lane.images["cold"].body
    story.meet()
    story.strike()
    (outcome,) = story.outcomes
    story.see(path, truth, outcome, lane.images["cold"].digest)
    story.finish(path, truth)


def _manifest(story: Story) -> None:
    lane = story.lane
    story.warm(lane.digest_path("cached"), lane.images["cached"].body)
    story.meet()
    story.strike()
    cached, cold = story.outcomes
    story.see(lane.digest_path("cached"), lane.images["cached"].body, cached, lane.images["cached"].digest)
    path, truth = lane.digest_path("cold"), lane.images["cold"].body
    story.see(path, truth, cold, lane.images["cold"].digest)
    story.finish(path, truth)


def _blob_cached(story: Story) -> None:
    lane = story.lane
    path, truth = lane.blob_path("cached"), lane.layers["cached"]
    story.warm(path, truth.data)
    story.meet()
    story.strike()
    (outcome,) = story.outcomes
    for _ in range(3):
        story.see(path, truth.data, outcome, truth.digest)
    story.finish(path, truth.data)


def _blob_cold(story: Story) -> None:
    lane = story.lane
    story.warm(lane.manifest_path("cached"), lane.images["cached"].body)
    path, truth = lane.blob_path("cold"), lane.layers["cold"]
    story.meet()
    story.strike()
    (outcome,) = story.outcomes
    story.see(path, truth.data, outcome, truth.digest)
    story.finish(path, truth.data)


def _blob_download(story: Story) -> None:
    lane = story.lane
    story.warm(lane.manifest_path("cached"), lane.images["cached"].body)
    path, truth = lane.blob_path("cold"), lane.layers["cold"]
    story.meet()
    is_early = story.state in story.trouble.early
    if is_early:
        story.strike()
    place = max(0, int(story.trouble.point * truth.size) - (EARLIER_BYTES if is_early else 0))
    is_blind = story.trouble.is_blind or place <= UNSEEN_BYTES
    gate = lane.hold(place, breaks=story.trouble.breaks)

    def are_attached() -> bool:
        if is_blind:
            return lane.fake_registry.sent_bytes(lane.body_kind) >= place
        return all(member.status and member.received >= place - UNSEEN_BYTES for member in crowd.members)

    with Crowd(story.deployment.address, path, truth, 1 + FOLLOWERS) as crowd:
        crowd.run(are_attached, PATIENCE_S)
        if is_blind:
            time.sleep(BLIND_S)
        if not is_early:
            story.strike()
        began_at = story.struck_at = time.monotonic()
        if not story.trouble.stalls:
            lane.half.set()
        crowd.run(within_s=PATIENCE_S)
        got = tuple(Got.of_member(member, (member.ended_at or began_at) - began_at) for member in crowd.members)
    assert gate.begun == 1, "the layer was not begun before the fault"
    for each in got:
        story.check_always(each)
    (outcome,) = story.outcomes
    story.judge(outcome, got, truth.digest)
    story.finish(path, read_whole(truth))


def _pointer(story: Story) -> bytes:
    path = story.deployment.dockyard.storage / "cache" / "manifests" / story.lane.prefix / "team/app/tags/cached"
    return path.read_bytes()


_TELL: Mapping[State, Callable[[Story], None]] = {
    State.TAG_CACHED: _tag_cached,
    State.TAG_COLD: _tag_cold,
    State.MANIFEST: _manifest,
    State.BLOB_CACHED: _blob_cached,
    State.BLOB_COLD: _blob_cold,
    State.BLOB_DOWNLOAD: _blob_download,
}
