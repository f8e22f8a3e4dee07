"""A scene: one Dockyard as a whole, struck in its store, its processes, its clients or its clock.

Unlike an upstream's fault, such a fault cannot be kept to one lane. So all states get ready, each in a lane of its own;
the fault strikes once; all clients ask; the fault ends once; and everything must be well again.

A `Part` is one state's role. Whatever is not as it must be becomes a line of its record; nothing is raised.
"""

import contextlib
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs

from tests.chaos.audit import audit_directory, count_files, find_leaks
from tests.chaos.bystanders import Bystanders
from tests.chaos.cells import Cell, Record, State
from tests.chaos.clock import Clock
from tests.chaos.lanes import Lane, wait_for
from tests.chaos.limits import RECOVERY_S, SLACK_S, Limits
from tests.chaos.outcomes import Got, Outcome, Seen, describe, judge_always
from tests.s3.service.bucket_view import BucketView
from tests.s3.store.proxy import S3Proxy
from tests.support.deployment import Deployment, open_deployment
from tests.support.http_client import Crowd, Response, send_request
from tests.support.toxiproxy import TcpProxy, Toxiproxy

MIB = 1024 * 1024
CONTROL_BYTES = 64 * 1024
PATIENCE_S = 100.0
STORED_WITHIN_S = 5.0
LEAK_GONE_S = 10.0
UNSEEN_BYTES = 64 * 1024  # the tail that is held back, and what is under way
LIMITS = Limits(stall_s=30.0)  # a layer in progress stands still until all states are ready
NEVER_TOLD = ("127.0.0.", "localhost", "X-Amz", "Signature", "Traceback", "canary")

Tell = Callable[["Part"], None]


def nothing(_: Any) -> None:
    """Nothing to do."""


@attrs.frozen
class Plot:
    """One variant of a fault of a whole Dockyard.

    `outcomes` has what each state's clients must see, as `tell` has it for the state; `strike` begins the fault once
    all are ready, `mend` ends it, `prove` raises unless it was there, and `recover` waits until all is well again.
    """

    name: str
    tell: Mapping[State, Tell]
    outcomes: Mapping[State, tuple[Outcome, ...]]
    strike: Callable[["Scene"], None]
    prove: Callable[["Scene"], None] = nothing
    mend: Callable[["Scene"], None] = nothing
    recover: Callable[["Scene"], None] = nothing
    after: Callable[["Scene"], None] = nothing  # once all is well
    prepare: Callable[["Scene"], None] = nothing  # before Dockyard starts
    more: Mapping[State, Callable[["Part", Seen], None]] = attrs.field(factory=dict)
    workers: int = 2
    connections: int = 70  # the most that are open at a time
    layer_bytes: int = 4 * MIB
    has_bucket: bool = False
    may_retry: bool = False  # a connection that waits for the struck worker may end with it
    is_watched: bool = True  # the control client and the liveness check must see nothing of it
    again_within_s: float = 0.0  # or may have to ask twice, and have their answer in this time
    settings: Mapping[str, Any] = attrs.field(factory=dict)
    environ: Mapping[str, str] = attrs.field(factory=dict)
    recovery_s: float = RECOVERY_S
    reason: str = ""  # where the design decides otherwise than the table


@attrs.frozen
class Fault:
    """A row of the matrix. The first variant runs on every change, the others by command."""

    id: str
    title: str
    variants: tuple[Plot, ...]


@attrs.define(eq=False)
class Scene:
    """What is on stage. `shim` and `way` stand before the bucket; a test may keep what it needs in `props`."""

    plot: Plot
    directory: Path
    lanes: Mapping[State, Lane]
    control: Lane
    stack: contextlib.ExitStack
    place: BucketView | None = None
    shim: S3Proxy | None = None
    way: TcpProxy | None = None
    clock: Clock | None = None
    environ: dict[str, str] = attrs.field(factory=dict)
    settings: dict[str, Any] = attrs.field(factory=dict)
    props: dict[str, Any] = attrs.field(factory=dict)
    crowd: Crowd | None = None
    problems: list[str] = attrs.field(factory=list)
    _deployment: Deployment | None = None
    struck_at: float = 0.0
    mended_at: float = 0.0

    @property
    def deployment(self) -> Deployment:
        assert self._deployment is not None, "Dockyard does not run"
        return self._deployment

    @property
    def bucket(self) -> BucketView:
        assert self.place is not None, "there is no bucket"
        return self.place

    @property
    def store(self) -> S3Proxy:
        assert self.shim is not None, "there is no bucket"
        return self.shim

    def check(self, holds: object, problem: str) -> None:
        """Note a problem of all cells unless something holds."""
        if not holds and problem not in self.problems:
            self.problems.append(problem)


class Part:
    """One state in a scene."""

    def __init__(self, scene: Scene, record: Record, ready: threading.Barrier, seen: threading.Barrier) -> None:
        self.scene = scene
        self.record = record
        self.lane = scene.lanes[record.cell.state]
        self.retried = 0
        self._ready = ready
        self._seen = seen

    @property
    def deployment(self) -> Deployment:
        return self.scene.deployment

    @property
    def plot(self) -> Plot:
        return self.scene.plot

    @property
    def state(self) -> State:
        return self.record.cell.state

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        return self.plot.outcomes[self.state]

    def play(self) -> None:
        """All of it."""
        try:
            self.plot.tell[self.state](self)
            self._seen.wait(PATIENCE_S)
        except threading.BrokenBarrierError:
            self.record.problems.append("another state's part broke off")
        except Exception:  # noqa: BLE001  whatever it is, it is the cell's
            self.record.problems.append(traceback.format_exc(limit=-4))
            self._ready.abort()
            self._seen.abort()
        finally:
            self.lane.half.set()

    # What may happen

    def meet(self) -> None:
        """Wait until all are ready, and the fault has struck. What reaches the upstream counts from here."""
        self.lane.fake_registry.clear_exchanges()
        self.meet_in_download()

    def meet_in_download(self) -> None:
        """The same, and what has reached the upstream for the download counts too."""
        self._ready.wait(PATIENCE_S)

    def warm(self, path: str, truth: bytes) -> None:
        """Have something cached."""
        got = self.get(path, truth)
        assert (got.status, got.is_whole, got.is_right) == (200, True, True), f"{path}: {got.describe()}"
        digest = got.header("Docker-Content-Digest") or ""
        wait_for(lambda: self.is_stored(digest), f"{path} is stored", STORED_WITHIN_S)

    def get(self, path: str, truth: bytes, **headers: str) -> Got:
        """One client."""
        got = Got.of(self.ask(path, headers), truth)
        self.check_always(got)
        return got

    def ask(self, path: str, headers: Mapping[str, str] | None = None, timeout_s: float = PATIENCE_S) -> Response:
        """One request, and one more where the fault may have ended its connection; the time is that of both."""
        began_at = time.monotonic()
        try:
            return send_request(self.deployment.address, path, headers, timeout_s=timeout_s)
        except ConnectionError:
            if not self.plot.may_retry:
                raise
        self.retried += 1
        reply = send_request(self.deployment.address, path, headers, timeout_s=timeout_s)
        return attrs.evolve(reply, took_s=time.monotonic() - began_at)

    def see(self, path: str, truth: bytes, outcome: Outcome, digest: str) -> Seen:
        """One client, and what it cost; judged."""
        before = len(self.lane.seen())
        return self.judge(outcome, (self.get(path, truth),), digest, before)

    def judge(self, outcome: Outcome, got: tuple[Got, ...], digest: str, before: int = 0) -> Seen:
        """Compare what clients had with what they must have had."""
        if outcome.is_stored:
            with contextlib.suppress(AssertionError):
                wait_for(lambda: self.is_stored(digest), "stored", STORED_WITHIN_S)
        requests = tuple(self.lane.seen())[before:]
        seen = Seen(got, requests, self.is_stored(digest))
        self.record.problems += outcome.judge(seen)
        self.tell_of(seen)
        if more := self.plot.more.get(self.state):
            more(self, seen)
        return seen

    def tell_of(self, seen: Seen) -> None:
        """Put down what was seen."""
        self.record.seen += f"{' / ' if self.record.seen else ''}{seen.describe()}"
        self.record.requests += len(seen.requests)
        self.record.received_bytes += sum(each.sent_bytes for each in seen.requests)

    def is_stored(self, digest: str) -> bool:
        """Whether the local store has it."""
        return bool(self.deployment.stored_files(digest))

    def check(self, holds: object, problem: str) -> None:
        """Note a problem unless something holds."""
        self.record.check(holds, problem)

    def check_always(self, got: Got) -> None:
        """What holds for every answer (I2, I3, I8)."""
        self.record.problems += [each for each in judge_always(got) if each not in self.record.problems]
        if got.reply is None or got.status < 400:
            return
        try:
            assert got.reply.error, "an error without a code"
            text = got.reply.body.decode() + str(got.reply.headers)
            told = [secret for secret in (*NEVER_TOLD, str(self.deployment.dockyard.storage)) if secret in text]
            assert not told, f"an error tells {told}"
        except (AssertionError, ValueError, KeyError) as exc:
            self.record.problems.append(f"the form of an error: {exc}")

    @contextlib.contextmanager
    def download(self, clients: int = 10, point: float = 0.5) -> Any:
        """A cold layer on its way, with a leader and followers who all have what the upstream has sent."""
        path, truth = self.lane.blob_path("cold"), self.lane.layers["cold"]
        place = int(point * truth.size)
        self.lane.fake_registry.clear_exchanges()
        gate = self.lane.hold(place)
        with Crowd(self.deployment.address, path, truth, clients) as crowd:
            self.scene.crowd = crowd
            crowd.run(
                lambda: all(each.status and each.received >= place - UNSEEN_BYTES for each in crowd.members), PATIENCE_S
            )
            assert gate.begun == 1, f"the layer was begun {gate.begun} times before the fault"
            yield crowd

    def land(self, crowd: Crowd) -> tuple[Got, ...]:
        """Let the upstream go on, and wait until all of a crowd have ended."""
        began_at = time.monotonic()
        self.lane.half.set()
        crowd.run(within_s=PATIENCE_S)
        got = tuple(Got.of_member(each, (each.ended_at or began_at) - began_at) for each in crowd.members)
        for each in got:
            self.check_always(each)
        return got


def run(
    fault: Fault,
    plot: Plot,
    directory: Path,
    *,
    toxiproxy: Toxiproxy | None = None,
    place: BucketView | None = None,
    seed: int = 0,
    environ: Mapping[str, str] | None = None,
) -> dict[State, Record]:
    """Play one variant in all states that it applies to; a record for each."""
    states = list(plot.outcomes)
    records = {
        state: Record(Cell(fault.id, plot.name, state), fault.title, describe(plot.outcomes[state]), seed=seed)
        for state in states
    }
    with contextlib.ExitStack() as stack:

        def lane(name: str, layer_bytes: int) -> Lane:
            return stack.enter_context(Lane(name, toxiproxy, layer_bytes=layer_bytes, seed=seed, direct=True))  # type: ignore[arg-type]

        lanes = {state: lane(state, plot.layer_bytes) for state in states}
        scene = Scene(plot, directory, lanes, lane("control", CONTROL_BYTES), stack)
        scene.settings = {**plot.settings, "upstream": {**LIMITS.settings, **plot.settings.get("upstream", {})}}
        scene.environ = {**plot.environ, **(environ or {})}
        if place is not None:
            assert toxiproxy is not None, "a bucket is reached through toxiproxy"
            scene.place = place
            scene.shim = stack.enter_context(contextlib.closing(S3Proxy(place.server.port)))
            scene.way = stack.enter_context(contextlib.closing(toxiproxy.create_proxy(scene.shim.port)))
            scene.settings["storage"] = place.storage(scene.way.authority, **plot.settings.get("storage", {}))
        plot.prepare(scene)
        scene._deployment = stack.enter_context(
            open_deployment(
                scene.control.fake_registry,
                directory / "deployment",
                workers=plot.workers,
                upstreams=[each.settings() for each in (*lanes.values(), scene.control)],
                environ=scene.environ,
                **scene.settings,
            )
        )
        _play(scene, records)
        storage = Path(scene.deployment.dockyard.settings["storage"]["directory"])
        problems = audit_directory(storage)
        if scene.deployment.dockyard.is_running:
            scene.deployment.dockyard.stop()
        problems += audit_directory(storage)
        if place is not None:
            problems += place.audit()
    for record in records.values():
        record.problems += list(dict.fromkeys(scene.problems + problems))
    return records


def _play(scene: Scene, records: Mapping[State, Record]) -> None:
    """Dockyard runs: all parts at once."""
    deployment, control, plot = scene.deployment, scene.control, scene.plot
    path, body = control.blob_path("cached"), control.layers["cached"]
    reply = send_request(deployment.address, path)
    assert (reply.status, reply.body == body.data) == (200, True), f"the control blob: {reply}"
    deployment.wait_for_workers(plot.workers)
    files_before = {pid: count_files(pid) for pid in deployment.dockyard.worker_pids()}
    with Bystanders(deployment, path, body.data, plot.again_within_s) as bystanders:

        def strike() -> None:
            bystanders.strike()
            plot.strike(scene)
            scene.struck_at = time.monotonic()

        def end() -> None:
            plot.prove(scene)
            plot.mend(scene)
            scene.mended_at = time.monotonic()

        ready = threading.Barrier(len(records), action=strike)
        seen = threading.Barrier(len(records), action=end)
        parts = [Part(scene, record, ready, seen) for record in records.values()]
        with ThreadPoolExecutor(len(parts)) as pool:
            list(pool.map(Part.play, parts))
        if not seen.broken:
            _recover(scene, records)
    watched = (bystanders.problems if plot.is_watched else bystanders.memory_problems)(plot.connections)
    for record in records.values():
        record.rss_max_bytes = bystanders.memory.peak
        record.problems += [*watched, *_leaks_in_the_end(deployment, files_before)]


def _recover(scene: Scene, records: Mapping[State, Record]) -> None:
    """All is well again, by itself and in time."""
    try:
        scene.plot.recover(scene)
        took_s = time.monotonic() - scene.mended_at
        scene.check(took_s <= scene.plot.recovery_s + SLACK_S, f"well again only after {took_s:.1f} s")
        for record in records.values():
            record.recovery_s = round(took_s, 3)
        scene.plot.after(scene)
    except (AssertionError, OSError) as exc:
        scene.problems.append(f"not well again: {exc}")


def _leaks_in_the_end(deployment: Deployment, before: Mapping[int, int]) -> list[str]:
    with contextlib.suppress(AssertionError):
        wait_for(lambda: not find_leaks(deployment, dict(before)), "nothing is left", LEAK_GONE_S)
    return find_leaks(deployment, dict(before))
