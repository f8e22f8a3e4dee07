"""All clients disconnect, or the one that started the download: P05, P07."""

import time

from tests.chaos.engine.case import State
from tests.chaos.engine.case_run import TIMEOUT_S
from tests.chaos.engine.deployment_case import DeploymentCaseRun
from tests.chaos.engine.isolated_upstream import wait_for
from tests.chaos.engine.limits import SLACK_S
from tests.chaos.engine.outcomes import hit, new
from tests.chaos.engine.run import Run
from tests.chaos.engine.variant import MIB, DeploymentVariant, Fault
from tests.support.busy_machine import is_within
from tests.support.http_client import Crowd, StreamedResponse, is_part_of
from tests.support.worker_state import cpu_seconds, open_files

CLIENTS = 10
MAX_LINES_EACH = 3
STOPS_WITHIN_S = 1.0
IDLE_WITHIN_S = 2.0
IDLE_SHARE = 0.3  # of a processor, for all workers; the control client and the liveness check continue
LAYER_BYTES = 12 * MIB
FOLLOWERS = 9


def _reset_all(run: Run) -> None:
    run.data["logged"] = len(run.deployment.dockyard.read_log().splitlines())
    for download in run.data.get("disconnecting", []):
        download.reset()


def _add_disconnecting(case: DeploymentCaseRun, downloads: list[StreamedResponse]) -> None:
    case.run.data.setdefault("disconnecting", []).extend(downloads)


# P05


def _disconnect_from_cached(case: DeploymentCaseRun) -> None:
    """The file of a cached layer is closed when its clients have disconnected."""
    truth, path = case.upstream.layers["cached"], case.upstream.blob_path("cached")
    case.cache(path, truth.data)
    clients = [StreamedResponse(case.deployment.address, path, receive_buffer=4096) for _ in range(CLIENTS)]
    share = case.run.data["share"]
    for each in clients:
        assert is_part_of(truth, 0, each.head().read(int(share * MIB)))
    _add_disconnecting(case, clients)
    case.wait_for_fault()
    encoded = truth.digest.partition(":")[2]
    within = wait_for(
        lambda: (
            not any(
                encoded in name for pid in case.deployment.dockyard.worker_pids() for name in open_files(pid).values()
            )
        ),
        "the layer is closed",
        TIMEOUT_S,
    )
    case.check(
        is_within(within, STOPS_WITHIN_S, slack_s=SLACK_S),
        f"read for {within:.1f} s after the last client had disconnected",
    )
    case.request_and_judge(path, truth.data, case.outcomes[0], truth.digest)


def _disconnect_from_download(case: DeploymentCaseRun) -> None:
    """The download goes on to its end without a client."""
    truth, path = case.upstream.layers["cold"], case.upstream.blob_path("cold")
    place = int(case.run.data["share"] * truth.size)
    case.upstream.fake_registry.clear_exchanges()
    case.upstream.hold_download(place)
    count = CLIENTS if case.state is State.BLOB_DOWNLOAD else 1
    clients = [StreamedResponse(case.deployment.address, path) for _ in range(count)]
    for each in clients:
        assert is_part_of(truth, 0, each.head().read(place))
    _add_disconnecting(case, clients)
    case.wait_for_fault_during_download()
    case.upstream.resume_download.set()
    wait_for(lambda: case.is_stored(truth.digest), "the layer is stored though all clients have disconnected")
    before = len(case.upstream.requests())
    response = case.get(path, truth.data)
    case.check(len(case.upstream.requests()) == before, "fetched again for the client that came later")
    case.judge(case.outcomes[0], (response,), truth.digest)


def _check_log_and_idle(run: Run) -> None:
    """There are few lines in the log, and the workers become idle."""
    lines = run.deployment.read_log().splitlines()[run.data["logged"] :]
    about = [line for line in lines if any(upstream.prefix in line for upstream in run.upstreams.values())]
    other_lines = 2 * len(run.upstreams)
    most = MAX_LINES_EACH * len(run.data["disconnecting"]) + other_lines
    run.check(
        len(about) <= most, f"{len(about)} lines in the log for {len(run.data['disconnecting'])} that disconnected"
    )

    def is_idle() -> bool:
        pids = run.deployment.dockyard.worker_pids()
        used, since = sum(map(cpu_seconds, pids)), time.monotonic()
        time.sleep(0.5)  # the share of a processor is measured over a while
        return sum(map(cpu_seconds, pids)) - used < IDLE_SHARE * (time.monotonic() - since)

    took = wait_for(is_idle, "idle workers", TIMEOUT_S)
    run.check(
        is_within(took, IDLE_WITHIN_S, slack_s=SLACK_S), f"busy for {took:.1f} s after all clients had disconnected"
    )


def _disconnect_at(share: float) -> DeploymentVariant:
    def prepare(run: Run) -> None:
        run.data["share"] = share

    return DeploymentVariant(
        f"at {share:.0%}",
        steps={
            State.BLOB_CACHED: _disconnect_from_cached,
            State.BLOB_COLD: _disconnect_from_download,
            State.BLOB_DOWNLOAD: _disconnect_from_download,
        },
        outcomes={State.BLOB_CACHED: (hit(),), State.BLOB_COLD: (new(),), State.BLOB_DOWNLOAD: (new(),)},
        prepare=prepare,
        inject=_reset_all,
        verify=_check_log_and_idle,
        layer_bytes=LAYER_BYTES,
        reason="a download goes on to its end without clients, however much of it has been fetched",
    )


ALL_DISCONNECT = Fault("P05", "All clients disconnect", (_disconnect_at(0.1), _disconnect_at(0.6)))


# P07


def _first_client_disconnects(case: DeploymentCaseRun) -> None:
    upstream, truth = case.upstream, case.upstream.layers["cold"]
    place = truth.size // 10
    upstream.fake_registry.clear_exchanges()
    upstream.hold_download(place)
    first = StreamedResponse(case.deployment.address, upstream.blob_path("cold"))
    assert is_part_of(truth, 0, first.head().read(place))
    with Crowd(case.deployment.address, upstream.blob_path("cold"), truth, FOLLOWERS) as crowd:
        crowd.run(lambda: all(each.received >= place for each in crowd.members), TIMEOUT_S)
        _add_disconnecting(case, [first])
        case.wait_for_fault_during_download()
        responses = case.finish_download(crowd)
    observation = case.judge(case.outcomes[0], responses, truth.digest)
    sent = sum(each.sent_bytes for each in observation.requests)
    case.check(sent == truth.size, f"{sent} bytes came from the upstream for {truth.size}")


FIRST_DISCONNECTS = Fault(
    "P07",
    "The first client disconnects at 10 %",
    (
        DeploymentVariant(
            "at 10%",
            steps={State.BLOB_DOWNLOAD: _first_client_disconnects},
            outcomes={State.BLOB_DOWNLOAD: (new(),)},
            inject=_reset_all,
            layer_bytes=LAYER_BYTES,
        ),
    ),
)

FAULTS = (ALL_DISCONNECT, FIRST_DISCONNECTS)
