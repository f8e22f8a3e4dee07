"""Section P of the matrix, clients: those that leave, those that are slow, and those that speak oddly."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Self

import attrs

from tests.bodies import Bytes
from tests.chaos.cells import State
from tests.chaos.lanes import wait_for
from tests.chaos.limits import SLACK_S
from tests.chaos.outcomes import Got, Outcome, hit, hit1, new
from tests.chaos.scenes import MIB, PATIENCE_S, Fault, Part, Plot, Scene, Tell, nothing
from tests.client import Crowd, Download, is_part_of, request_bytes
from tests.faults.watch import open_files, processor_s

LEAVERS = 10
LINES_EACH = 3
STOPS_WITHIN_S = 1.0
IDLE_WITHIN_S = 2.0
IDLE_SHARE = 0.3  # of a processor, for all workers: the control client and the liveness check go on
LAYER_BYTES = 12 * MIB
CROWDED_BYTES = 6 * MIB
FAST_CLIENTS = 99
SLOW_BYTES_PER_S = 1024
SLOWED_AT_MOST = 1.1
MEMBERS = 9  # that ask as ever, beside the odd one


def _reset_all(scene: Scene) -> None:
    scene.props["logged"] = len(scene.house.dockyard.said().splitlines())
    for download in scene.props.get("leavers", []):
        download.reset()


def _join_leavers(part: Part, downloads: list[Download]) -> None:
    part.scene.props.setdefault("leavers", []).extend(downloads)


# P05


def _leaves_cached(part: Part) -> None:
    """The file of a cached layer is closed when its readers have left."""
    truth, path = part.lane.layers["cached"], part.lane.blob_path("cached")
    part.warm(path, truth.data)
    leavers = [Download(part.house.address, path, receive_buffer=4096) for _ in range(LEAVERS)]
    share = part.scene.props["share"]
    for each in leavers:
        assert is_part_of(truth, 0, each.head().read(int(share * MIB)))
    _join_leavers(part, leavers)
    part.meet()
    encoded = truth.digest.partition(":")[2]
    within = wait_for(
        lambda: (
            not any(encoded in name for pid in part.house.dockyard.worker_pids() for name in open_files(pid).values())
        ),
        "the layer is closed",
        PATIENCE_S,
    )
    part.check(within <= STOPS_WITHIN_S + SLACK_S, f"read on for {within:.1f} s after the last client had left")
    part.see(path, truth.data, part.outcomes[0], truth.digest)


def _leaves_cold(part: Part) -> None:
    """The fetch goes on to its end without a client."""
    truth, path = part.lane.layers["cold"], part.lane.blob_path("cold")
    place = int(part.scene.props["share"] * truth.size)
    part.lane.origin.forget()
    part.lane.hold(place)
    count = LEAVERS if part.state is State.BLOB_FLIGHT else 1
    leavers = [Download(part.house.address, path) for _ in range(count)]
    for each in leavers:
        assert is_part_of(truth, 0, each.head().read(place))
    _join_leavers(part, leavers)
    part.meet_in_flight()
    part.lane.half.set()
    wait_for(lambda: part.is_stored(truth.digest), "the layer is stored though all have left", 11.0)
    before = len(part.lane.seen())
    got = part.get(path, truth.data)
    part.check(len(part.lane.seen()) == before, "fetched again for the client that came later")
    part.judge(part.outcomes[0], (got,), truth.digest)


def _is_quiet(scene: Scene) -> None:
    """Few lines in the log, and idle workers."""
    said = scene.house.dockyard.said().splitlines()[scene.props["logged"] :]
    about = [line for line in said if any(lane.prefix in line for lane in scene.lanes.values())]
    answered = 2 * len(scene.lanes)
    most = LINES_EACH * len(scene.props["leavers"]) + answered
    scene.check(len(about) <= most, f"{len(about)} lines in the log for {len(scene.props['leavers'])} that left")

    def is_idle() -> bool:
        pids = scene.house.dockyard.worker_pids()
        used, since = sum(map(processor_s, pids)), time.monotonic()
        time.sleep(0.5)  # a share of a processor can only be told over a while
        return sum(map(processor_s, pids)) - used < IDLE_SHARE * (time.monotonic() - since)

    took = wait_for(is_idle, "idle workers", PATIENCE_S)
    scene.check(took <= IDLE_WITHIN_S + SLACK_S, f"busy for {took:.1f} s after all had left")


def _leave_at(share: float) -> Plot:
    def prepare(scene: Scene) -> None:
        scene.props["share"] = share

    return Plot(
        f"at {share:.0%}",
        tell={State.BLOB_CACHED: _leaves_cached, State.BLOB_COLD: _leaves_cold, State.BLOB_FLIGHT: _leaves_cold},
        outcomes={State.BLOB_CACHED: (hit(),), State.BLOB_COLD: (new(),), State.BLOB_FLIGHT: (new(),)},
        prepare=prepare,
        strike=_reset_all,
        prove=_is_quiet,
        layer_bytes=LAYER_BYTES,
        reason="a fill whose clients have all left goes on to its end, at 10 % as well",
    )


LEAVING = Fault("P05", "All clients leave", (_leave_at(0.1), _leave_at(0.6)))


# P06


def _among_many(part: Part) -> None:
    """Ninety-nine as fast as they can, alone and then with one that hardly reads."""
    lane, address = part.lane, part.house.address
    if part.state is State.BLOB_CACHED:
        truth, path = lane.layers["cached"], lane.blob_path("cached")
        part.warm(path, truth.data)
        part.meet()
        usual_s = _download_all(part, path, truth, hit())
    else:
        truth, path = lane.layers["cold"], lane.blob_path("cold")
        part.meet()
        usual_s = _download_all(part, lane.blob_path("cached"), lane.layers["cached"], new())
    part.lane.origin.forget()
    with Download(address, path, receive_buffer=4096) as slow, _Reading(slow) as reading:
        took_s = _download_all(part, path, truth, part.outcomes[0])
        bound_s = SLOWED_AT_MOST * usual_s + SLACK_S
        part.check(took_s <= bound_s, f"99 clients took {took_s:.2f} s with a slow one, {usual_s:.2f} s without")
        encoded = truth.digest.partition(":")[2]
        wait_for(
            lambda: not any(encoded in file.name for file in part.house.partial_files()), "no partial file is left", 5.0
        )
        reading.stop()
        part.check(is_part_of(truth, 0, reading.body), "wrong bytes for the slow one")
        body, ended = slow.rest()
        part.check(ended == "length", f"the slow client's download ends by {ended}")
        part.check(is_part_of(truth, len(reading.body), body), "wrong bytes for the slow one")


def _download_all(part: Part, path: str, truth: Bytes, outcome: Outcome) -> float:
    began_at = time.monotonic()
    with Crowd(part.house.address, path, truth, FAST_CLIENTS) as crowd:
        crowd.run(within_s=PATIENCE_S)
        took_s = time.monotonic() - began_at
        got = tuple(Got.of_member(each, (each.ended_at or began_at) - began_at) for each in crowd.members)
    part.judge(outcome, got, truth.digest)
    return took_s


class _Reading:
    """Reads a download at one KiB a second, in a thread."""

    def __init__(self, download: Download) -> None:
        self.body = b""
        self._download = download
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._download.head()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Read no more here."""
        self._done.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._done.wait(0.25):
            self.body += self._download.read(SLOW_BYTES_PER_S // 4)


SLOW = Fault(
    "P06",
    "One client reads 1 KiB/s among many",
    (
        Plot(
            "1 KiB/s",
            tell=dict.fromkeys((State.BLOB_CACHED, State.BLOB_COLD, State.BLOB_FLIGHT), _among_many),
            outcomes={State.BLOB_CACHED: (hit(),), State.BLOB_COLD: (new(),), State.BLOB_FLIGHT: (new(),)},
            strike=nothing,
            layer_bytes=CROWDED_BYTES,
            connections=3 * FAST_CLIENTS,
            is_watched=False,  # the clients themselves take the processors
            reason="the slow one goes on reading the file of the local tier: there is no spool to free",
        ),
    ),
)


# P07


def _leader_leaves(part: Part) -> None:
    lane, truth = part.lane, part.lane.layers["cold"]
    place = truth.size // 10
    lane.origin.forget()
    lane.hold(place)
    leader = Download(part.house.address, lane.blob_path("cold"))
    assert is_part_of(truth, 0, leader.head().read(place))
    with Crowd(part.house.address, lane.blob_path("cold"), truth, MEMBERS) as crowd:
        crowd.run(lambda: all(each.received >= place for each in crowd.members), PATIENCE_S)
        _join_leavers(part, [leader])
        part.meet_in_flight()
        got = part.land(crowd)
    seen = part.judge(part.outcomes[0], got, truth.digest)
    sent = sum(each.sent_bytes for each in seen.requests)
    part.check(sent == truth.size, f"{sent} bytes came from the upstream for {truth.size}")


LEADER = Fault(
    "P07",
    "The leader leaves at 10 %",
    (
        Plot(
            "at 10%",
            tell={State.BLOB_FLIGHT: _leader_leaves},
            outcomes={State.BLOB_FLIGHT: (new(),)},
            strike=_reset_all,
            layer_bytes=LAYER_BYTES,
        ),
    ),
)


# P10


def _beside_odd_one(part: Part) -> None:
    """Nine that ask as ever while a tenth is odd."""
    tag = "cached" if part.state in (State.TAG_CACHED, State.BLOB_CACHED) else "cold"
    asked: list[tuple[str, bytes, str, Outcome]] = []
    lane = part.lane
    image, layer = lane.images[tag], lane.layers[tag]
    if part.state in (State.TAG_CACHED, State.TAG_COLD):
        asked.append((lane.manifest_path(tag), image.body, image.digest, part.outcomes[0]))
    elif part.state is State.MANIFEST:
        for which, outcome in zip(("cached", "cold"), part.outcomes, strict=True):
            found = lane.images[which]
            asked.append((lane.digest_path(which), found.body, found.digest, outcome))
    else:
        asked.append((lane.blob_path(tag), layer.data, layer.digest, part.outcomes[0]))
    if part.state in (State.TAG_CACHED, State.MANIFEST, State.BLOB_CACHED):
        part.warm(asked[0][0], asked[0][1])
    part.meet()
    for path, truth, digest, outcome in asked:
        before = len(lane.seen())
        odd = threading.Thread(target=part.scene.props["odd"], args=(part, path, truth))
        with contextlib.ExitStack() as stack:
            members = [stack.enter_context(Download(part.house.address, path)) for _ in range(MEMBERS)]
            odd.start()
            got = tuple(_take(part, each, truth) for each in members)
        odd.join()
        part.judge(outcome, got, digest, before)


def _take(part: Part, download: Download, truth: bytes) -> Got:
    download.head()
    body, ended = download.rest()
    is_right = truth.startswith(body) and (ended != "length" or len(body) == len(truth))
    took_s = time.monotonic() - download.began_at
    got = Got(download.status, download.headers, len(body), is_right, ended == "length", took_s, ended)
    part.check_always(got)
    return got


def _resets(part: Part, path: str, _: bytes) -> None:
    """Ask, and reset at once; ask, read a little, and reset."""
    Download(part.house.address, path).reset()
    download = Download(part.house.address, path, receive_buffer=4096)
    with contextlib.suppress(ConnectionError):
        download.head().read(100)
    download.reset()


def _half_closes(part: Part, path: str, truth: bytes) -> None:
    """Ask, and shut the sending side: the answer is whole and right, or the connection is closed; nothing else."""
    with Download(part.house.address, path) as download:
        download.socket.shutdown(socket.SHUT_WR)
        try:
            status = download.head().status
        except ConnectionError:
            return
        body, ended = download.rest()
        part.check(status == 200, f"a half-closed client gets {status}")
        part.check(
            truth.startswith(body) and (ended != "length" or body == truth), "a half-closed client gets wrong bytes"
        )


def _pipelines(part: Part, path: str, truth: bytes) -> None:
    """Two requests in one packet: two answers in their order, each its own."""
    first = request_bytes("GET", "/v2/", part.house.address, {})
    second = request_bytes("GET", path, part.house.address, {"Connection": "close"})
    with Download(part.house.address, "", request=first + second) as download:
        ping = (download.head().status, download.read(download.length or 0))
        part.check(ping == (200, b"{}"), f"the first of two pipelined requests gets {ping}")
        download.received = 0
        status = download.head().status
        body, ended = download.rest()
        part.check((status, ended, body == truth) == (200, "length", True), f"the second gets {status}, {ended}")


def _odd(name: str, odd: Callable[[Part, str, bytes], None]) -> Plot:
    def strike(scene: Scene) -> None:
        scene.props |= {"odd": odd, "workers": scene.house.dockyard.worker_pids()}

    def prove(scene: Scene) -> None:
        assert scene.house.dockyard.worker_pids() == scene.props["workers"], "a worker has died"

    many = (0, MEMBERS + 2)
    told: Mapping[State, Tell] = dict.fromkeys(State, _beside_odd_one)
    return Plot(
        name,
        tell=told,
        outcomes={
            State.TAG_CACHED: (attrs.evolve(hit1(), heads=(1, MEMBERS + 2)),),
            State.TAG_COLD: (attrs.evolve(new(), heads=many),),
            State.MANIFEST: (hit(), new()),
            State.BLOB_CACHED: (hit(),),
            State.BLOB_COLD: (new(),),
            State.BLOB_FLIGHT: (new(),),
        },
        strike=strike,
        prove=prove,
    )


ODD = Fault(
    "P10",
    "A client resets, half-closes or pipelines",
    (_odd("RST", _resets), _odd("half-closed", _half_closes), _odd("pipelined", _pipelines)),
)

FAULTS = (LEAVING, SLOW, LEADER, ODD)
