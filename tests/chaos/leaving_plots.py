"""Section P of the matrix, clients that leave: all of them, or the one who was first."""

import time

from tests.chaos.cells import State
from tests.chaos.lanes import wait_for
from tests.chaos.limits import SLACK_S
from tests.chaos.outcomes import hit, new
from tests.chaos.scenes import MIB, PATIENCE_S, Fault, Part, Plot, Scene
from tests.support.http_client import Crowd, StreamedResponse, is_part_of
from tests.support.worker_state import cpu_seconds, open_files

LEAVERS = 10
LINES_EACH = 3
STOPS_WITHIN_S = 1.0
IDLE_WITHIN_S = 2.0
IDLE_SHARE = 0.3  # of a processor, for all workers: the control client and the liveness check go on
LAYER_BYTES = 12 * MIB
MEMBERS = 9  # that ask as ever, beside the odd one


def _reset_all(scene: Scene) -> None:
    scene.props["logged"] = len(scene.deployment.dockyard.read_log().splitlines())
    for download in scene.props.get("leavers", []):
        download.reset()


def _join_leavers(part: Part, downloads: list[StreamedResponse]) -> None:
    part.scene.props.setdefault("leavers", []).extend(downloads)


# P05


def _leaves_cached(part: Part) -> None:
    """The file of a cached layer is closed when its readers have left."""
    truth, path = part.lane.layers["cached"], part.lane.blob_path("cached")
    part.warm(path, truth.data)
    leavers = [StreamedResponse(part.deployment.address, path, receive_buffer=4096) for _ in range(LEAVERS)]
    share = part.scene.props["share"]
    for each in leavers:
        assert is_part_of(truth, 0, each.head().read(int(share * MIB)))
    _join_leavers(part, leavers)
    part.meet()
    encoded = truth.digest.partition(":")[2]
    within = wait_for(
        lambda: (
            not any(
                encoded in name for pid in part.deployment.dockyard.worker_pids() for name in open_files(pid).values()
            )
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
    part.lane.fake_registry.clear_exchanges()
    part.lane.hold(place)
    count = LEAVERS if part.state is State.BLOB_DOWNLOAD else 1
    leavers = [StreamedResponse(part.deployment.address, path) for _ in range(count)]
    for each in leavers:
        assert is_part_of(truth, 0, each.head().read(place))
    _join_leavers(part, leavers)
    part.meet_in_download()
    part.lane.half.set()
    wait_for(lambda: part.is_stored(truth.digest), "the layer is stored though all have left", 11.0)
    before = len(part.lane.seen())
    got = part.get(path, truth.data)
    part.check(len(part.lane.seen()) == before, "fetched again for the client that came later")
    part.judge(part.outcomes[0], (got,), truth.digest)


def _is_quiet(scene: Scene) -> None:
    """Few lines in the log, and idle workers."""
    said = scene.deployment.dockyard.read_log().splitlines()[scene.props["logged"] :]
    about = [line for line in said if any(lane.prefix in line for lane in scene.lanes.values())]
    answered = 2 * len(scene.lanes)
    most = LINES_EACH * len(scene.props["leavers"]) + answered
    scene.check(len(about) <= most, f"{len(about)} lines in the log for {len(scene.props['leavers'])} that left")

    def is_idle() -> bool:
        pids = scene.deployment.dockyard.worker_pids()
        used, since = sum(map(cpu_seconds, pids)), time.monotonic()
        time.sleep(0.5)  # a share of a processor can only be told over a while
        return sum(map(cpu_seconds, pids)) - used < IDLE_SHARE * (time.monotonic() - since)

    took = wait_for(is_idle, "idle workers", PATIENCE_S)
    scene.check(took <= IDLE_WITHIN_S + SLACK_S, f"busy for {took:.1f} s after all had left")


def _leave_at(share: float) -> Plot:
    def prepare(scene: Scene) -> None:
        scene.props["share"] = share

    return Plot(
        f"at {share:.0%}",
        tell={State.BLOB_CACHED: _leaves_cached, State.BLOB_COLD: _leaves_cold, State.BLOB_DOWNLOAD: _leaves_cold},
        outcomes={State.BLOB_CACHED: (hit(),), State.BLOB_COLD: (new(),), State.BLOB_DOWNLOAD: (new(),)},
        prepare=prepare,
        strike=_reset_all,
        prove=_is_quiet,
        layer_bytes=LAYER_BYTES,
        reason="a fill whose clients have all left goes on to its end, at 10 % as well",
    )


LEAVING = Fault("P05", "All clients leave", (_leave_at(0.1), _leave_at(0.6)))


# P07


def _leader_leaves(part: Part) -> None:
    lane, truth = part.lane, part.lane.layers["cold"]
    place = truth.size // 10
    lane.fake_registry.clear_exchanges()
    lane.hold(place)
    leader = StreamedResponse(part.deployment.address, lane.blob_path("cold"))
    assert is_part_of(truth, 0, leader.head().read(place))
    with Crowd(part.deployment.address, lane.blob_path("cold"), truth, MEMBERS) as crowd:
        crowd.run(lambda: all(each.received >= place for each in crowd.members), PATIENCE_S)
        _join_leavers(part, [leader])
        part.meet_in_download()
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
            tell={State.BLOB_DOWNLOAD: _leader_leaves},
            outcomes={State.BLOB_DOWNLOAD: (new(),)},
            strike=_reset_all,
            layer_bytes=LAYER_BYTES,
        ),
    ),
)

FAULTS = (LEAVING, LEADER)
