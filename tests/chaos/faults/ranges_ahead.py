"""Clients read ranges ahead of a download from an upstream with `lazy: true`: U27 and P13.

Several clients request ranges far behind the first bytes of a layer, which the upstream withholds meanwhile, so that
each range is requested from it by itself. Another client requests the whole layer.
"""

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import attrs

from dockyard.cache.ranged_fetch import MAX_REQUESTED_CONNECTIONS
from dockyard.cache.retries import MAX_FRUITLESS_ATTEMPTS
from tests.chaos.engine.case import State
from tests.chaos.engine.case_run import CaseRun
from tests.chaos.engine.deployment_case import DeploymentCaseRun
from tests.chaos.engine.direct_client import is_direct
from tests.chaos.engine.isolated_upstream import IsolatedUpstream, wait_for
from tests.chaos.engine.limits import SLACK_S
from tests.chaos.engine.outcomes import Observation, ObservedResponse, Outcome, cut
from tests.chaos.engine.run import Environment, Run
from tests.chaos.engine.upstream_case import UpstreamCaseRun
from tests.chaos.engine.variant import MIB, DeploymentVariant, Fault, UpstreamVariant
from tests.chaos.faults.disk import fill_up, free_space, mount_small_disk, wait_until_stored
from tests.chaos.faults.process_workers import RESPAWN_S, WATCHDOG_S
from tests.chaos.faults.upstream_checks import L
from tests.support import faults
from tests.support.deployment import set_at_exit
from tests.support.fake_registry import Change
from tests.support.http_client import send_request
from tests.support.raw_http import Request, ScriptedResponse
from tests.support.worker_state import download_owners

LAYER_BYTES = 24 * MIB + 12345
FRONT_BYTES = 8 * MIB  # of the first request for the layer; what is ahead of it is requested by itself
MAX_AHEAD_BYTES = 3 * MIB  # of one request for a range ahead: requests for the rest of the layer are larger
# First and last byte: within a piece, across two, whole ones, and the footer.
RANGES = (
    (20 * MIB, 20 * MIB + 69_999),
    (10 * MIB + 5, 10 * MIB + 1004),
    (14 * MIB + 900_000, 15 * MIB + 300_000),
    (17 * MIB, 18 * MIB - 1),
    (22 * MIB + 1, 22 * MIB + 500_000),
    (LAYER_BYTES - 50, LAYER_BYTES - 1),
)
SEGMENTS = 2 * len(RANGES) + 1  # with what lies between these ranges
HALF_PIECE_BYTES = MIB // 2
MAX_ERROR_BYTES = 1024  # of the body of a 403


def right_ranges(within_s: float, gets: tuple[int, int], waste_bytes: int | None = 0) -> Outcome:
    """Every client has what it requested; each GET may have brought so many bytes for nothing."""
    return Outcome(
        f"RANGES({within_s:g})",
        f"the right bytes of each range, and the whole layer, within {within_s:g} s",
        frozenset({200, 206}),
        within_s=within_s,
        gets=gets,
        is_stored=True,
        waste_bytes=waste_bytes,
    )


def _find_range(request: Request) -> tuple[int, int] | None:
    """First and last byte that Dockyard requests."""
    match = re.fullmatch(r"bytes=(\d+)-(\d+)", request.header("Range") or "")
    return (int(match[1]), int(match[2])) if match and not is_direct(request) else None


def _is_ahead(request: Request) -> bool:
    """Whether this is requested because a client reads a range ahead."""
    found = _find_range(request)
    return found is not None and found[0] >= FRONT_BYTES and found[1] - found[0] < MAX_AHEAD_BYTES


def _hold_front(upstream: IsolatedUpstream, until: threading.Event) -> None:
    """Send nothing of the first bytes of the layer until the event is set. A body of the whole layer is not held."""
    held = faults.stalled(0, until)

    def change(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        is_held = response.status == 206 and response.start < FRONT_BYTES and not is_direct(request)
        return held(request, response) if is_held else response

    upstream.on(upstream.body_kind, change, method="GET")


def _count_ahead(upstream: IsolatedUpstream) -> int:
    return sum(_is_ahead(each.request) for each in upstream.requests(upstream.body_kind, "GET"))


def _get_range(case: CaseRun, part: tuple[int, int]) -> ObservedResponse:
    """Request a range, and check what holds for every response to it."""
    first, last = part
    layer = case.upstream.layers["cold"]
    response = case.get(case.upstream.blob_path("cold"), layer.data[first : last + 1], Range=f"bytes={first}-{last}")
    if response.status < 400:
        _check_range(case, response, part)
    return response


def _check_range(case: CaseRun, response: ObservedResponse, part: tuple[int, int]) -> None:
    first, last = part
    found = response.header("Content-Range")
    case.check(response.status == 206, f"status {response.status} for {first}-{last}")
    case.check(found == f"bytes {first}-{last}/{LAYER_BYTES}", f"Content-Range {found!r} for {first}-{last}")
    case.check(response.is_right, f"WRONG BYTES in {first}-{last}")


# U27


def _read_ahead(case: UpstreamCaseRun) -> None:
    """Clients request ranges ahead, and one the whole layer; the layer goes on when the ranges were sent."""
    upstream, layer = case.upstream, case.upstream.layers["cold"]
    path = upstream.blob_path("cold")
    case.cache(upstream.manifest_path("cold"), upstream.images["cold"].body)
    case.wait_for_fault()
    case.inject()
    with ThreadPoolExecutor(len(RANGES) + 1) as pool, set_at_exit(threading.Event()) as go_on:
        _hold_front(upstream, go_on)
        ranges = [pool.submit(_get_range, case, part) for part in RANGES]
        wait_for(lambda: _count_ahead(upstream), "a range is requested ahead")
        whole = pool.submit(case.get, path, layer.data)
        responses = [each.result() for each in ranges]
        go_on.set()
        responses.append(whole.result())
    case.judge(case.outcomes[0], tuple(responses), layer.digest)
    case.record.seen += f"; {len(upstream.requests('blob', 'GET'))} GETs"
    case.check_recovery(path, layer.data)


def _is_lazy(upstream: IsolatedUpstream, _: Environment) -> None:
    upstream.extra_settings["lazy"] = True


def _has_cdn(upstream: IsolatedUpstream, environment: Environment) -> None:
    """Each signed URL may be used once."""
    _is_lazy(upstream, environment)
    upstream.add_cdn(uses=1)


def _change_ahead(change: Change) -> Callable[[IsolatedUpstream, State], None]:
    """Change the next responses to requests for ranges ahead, as many as there are clients of ranges."""

    def inject(upstream: IsolatedUpstream, _: State) -> None:
        upstream.on(upstream.body_kind, change, method="GET", when=_is_ahead, times=len(RANGES))

    return inject


def _change_ranges(change: Change) -> Callable[[IsolatedUpstream, State], None]:
    """Change every response to a request for a range."""

    def inject(upstream: IsolatedUpstream, _: State) -> None:
        upstream.on("blob", change, method="GET", when=lambda request: _find_range(request) is not None)

    return inject


def _stall_ahead(upstream: IsolatedUpstream, state: State) -> None:
    _change_ahead(faults.stalled(0.5, upstream.stalls_over))(upstream, state)


def _stall_always(upstream: IsolatedUpstream, _: State) -> None:
    upstream.on("blob", faults.stalled(1, upstream.stalls_over), method="GET", when=_is_ahead)


def _is_changed(upstream: IsolatedUpstream, _: State) -> None:
    assert upstream.rules[0].applied, "no response was changed"


def _is_refused(upstream: IsolatedUpstream, _: State) -> None:
    refused = [each for each in upstream.requests("cdn") if each.status == 403]
    assert refused, "no URL was used twice"


def _other_etag(request: Request, response: ScriptedResponse) -> ScriptedResponse:
    return response.with_header("ETag", f'"{response.start}"')


def _range_fault(
    name: str,
    inject: Callable[[IsolatedUpstream, State], None],
    outcome: Outcome,
    *,
    prepare: Callable[[IsolatedUpstream, Environment], None] = _is_lazy,
    verify: Callable[[IsolatedUpstream, State], None] = _is_changed,
    reason: str = "",
) -> UpstreamVariant:
    return UpstreamVariant(
        name,
        inject=inject,
        verify=verify,
        prepare=prepare,
        outcomes={State.BLOB_COLD: (outcome,)},
        steps={State.BLOB_COLD: _read_ahead},
        layer_bytes=LAYER_BYTES,
        reason=reason,
    )


# Fewer where the download is faster than the clients; each change, and each time that the front stalls, costs one more.
_GETS = (len(RANGES), SEGMENTS + 2)
_RESUMED_GETS = (len(RANGES) + 1, SEGMENTS + len(RANGES) + 3)
# The requests that are on their way when the first response comes, and one for the whole layer.
_IN_ORDER_GETS = (2, len(RANGES) + 6)
_IN_ORDER = "the layer is received in one response, and ranges wait for it"

_SHORT = attrs.evolve(
    cut(L.stalls()),
    says=f"504, or a body that ends visibly short, within {L.stalls():g} s; clients retry",
    statuses=frozenset({200, 206, 504}),
    gets=(1, 2 * MAX_FRUITLESS_ATTEMPTS * (MAX_REQUESTED_CONNECTIONS + 1)),  # of a download, and of one that comes late
)

RANGE_AHEAD = Fault(
    "U27",
    "A range that is requested ahead fails",
    (
        _range_fault("cut", _change_ahead(faults.cut(0.5)), right_ranges(2 * L.bad_content(), _RESUMED_GETS)),
        _range_fault(
            "reset",
            _change_ahead(faults.cut(0.5, "rst")),
            right_ranges(2 * L.bad_content(), _RESUMED_GETS, HALF_PIECE_BYTES),
        ),
        _range_fault("stalled", _stall_ahead, right_ranges(2 * L.first_byte() + 3, _RESUMED_GETS)),
        _range_fault("stalled at each attempt", _stall_always, _SHORT),
        _range_fault(
            "200 instead of 206",
            _change_ranges(faults.ignoring_range()),
            right_ranges(L.bad_content(), _IN_ORDER_GETS, None),
            reason=_IN_ORDER,
        ),
        _range_fault(
            "416",
            _change_ranges(faults.replaced(416)),
            right_ranges(L.bad_content(), _IN_ORDER_GETS),
            reason=_IN_ORDER,
        ),
        _range_fault(
            "another ETag",
            _change_ranges(_other_etag),
            right_ranges(L.bad_content(), _IN_ORDER_GETS, None),
            reason=_IN_ORDER,
        ),
        _range_fault(
            "expired link",
            lambda *_: None,
            right_ranges(L.bad_content(), (_GETS[0], _GETS[1] + len(RANGES)), MAX_ERROR_BYTES),
            prepare=_has_cdn,
            verify=_is_refused,
            reason="a signed URL is refused when it is used again: the registry is asked for another one",
        ),
    ),
)


# P13

WORKERS = 4
RETRY_EVERY_S = 0.2


def _read_ahead_while_it_fails(case: DeploymentCaseRun) -> None:
    """Ranges are being received when the fault begins; clients repeat what breaks off until they have their bytes."""
    upstream, layer = case.upstream, case.upstream.layers["cold"]
    case.cache(upstream.manifest_path("cold"), upstream.images["cold"].body)
    upstream.fake_registry.clear_exchanges()
    with ThreadPoolExecutor(len(RANGES) + 1) as pool, set_at_exit(threading.Event()) as go_on:
        _hold_front(upstream, go_on)
        upstream.on("blob", faults.stalled(0.5, go_on), method="GET", when=_is_ahead)
        ranges = [pool.submit(_read_range, case, part) for part in RANGES]
        wait_for(lambda: _count_ahead(upstream) >= MAX_REQUESTED_CONNECTIONS, "ranges are being received")
        case.run.data["owner"] = _find_owner(case)
        case.wait_for_fault_during_download()
        go_on.set()
        responses = tuple(each.result() for each in ranges)
    whole = case.get(upstream.blob_path("cold"), layer.data)
    case.judge(case.outcomes[0], (*responses, whole), layer.digest)
    if repeated := case.run.data["repeated"]:
        case.record.seen += f"; requested again after {', '.join(sorted(repeated))}"


def _find_owner(case: DeploymentCaseRun) -> int:
    """The worker that receives the layer."""
    name = case.upstream.layers["cold"].digest.partition(":")[2]
    owners = [pid for pid, paths in download_owners(case.deployment).items() if any(name in path for path in paths)]
    assert len(owners) == 1, f"workers {owners} receive the layer"
    return owners[0]


def _read_range(case: DeploymentCaseRun, part: tuple[int, int]) -> ObservedResponse:
    """Request a range until it is complete; the time is from the fault on. What comes before must be right."""
    limit_s = case.run.data["limit_s"]
    while True:
        response = _get_range(case, part)
        began_at = case.run.injected_at or time.monotonic()
        took_s = time.monotonic() - began_at
        if response.status == 206 and response.is_whole:
            return attrs.evolve(response, took_s=took_s)
        case.check(response.status in (206, 503, 504), f"{response.describe()} for {part[0]}-{part[1]}")
        case.run.data["repeated"].append(response.describe())
        if took_s > limit_s + SLACK_S:
            return response
        time.sleep(RETRY_EVERY_S)


def _prepare(limit_s: float) -> Callable[[Run], None]:
    def prepare(run: Run) -> None:
        for upstream in run.upstreams.values():
            upstream.extra_settings["lazy"] = True
        run.data |= {"limit_s": limit_s, "repeated": []}

    return prepare


def _signal_owner(number: int) -> Callable[[Run], None]:
    def inject(run: Run) -> None:
        os.kill(run.data["owner"], number)

    return inject


def _is_gone(run: Run) -> None:
    wait_for(lambda: run.data["owner"] not in run.deployment.dockyard.worker_pids(), "the worker is gone", WATCHDOG_S)


def _wait_for_workers(run: Run) -> None:
    wait_for(lambda: len(run.deployment.dockyard.worker_pids()) == WORKERS, "all workers")
    wait_for(lambda: not run.deployment.partial_files(), "no partial file")


def _owner_fault(name: str, number: int, limit_s: float, waste_bytes: int) -> DeploymentVariant:
    return DeploymentVariant(
        name,
        steps={State.BLOB_DOWNLOAD: _read_ahead_while_it_fails},
        outcomes={State.BLOB_DOWNLOAD: (right_ranges(limit_s, _OWNER_GETS, waste_bytes),)},
        prepare=_prepare(limit_s),
        inject=_signal_owner(number),
        verify=_is_gone,
        wait_until_recovered=_wait_for_workers,
        workers=WORKERS,
        layer_bytes=LAYER_BYTES,
        may_reconnect=True,
        reconnects_within_s=limit_s + SLACK_S,
        recovery_s=RESPAWN_S,
        reason="the next owner continues with the pieces that are there; connections to the worker break, and clients "
        "retry",
    )


def _check_received(case: DeploymentCaseRun, observation: Observation) -> None:
    """Each worker fetches the layer for its own clients, and one does so for the client that comes last."""
    received = sum(each.sent_bytes for each in observation.requests)
    case.check(received <= (WORKERS + 2) * LAYER_BYTES, f"{received} bytes from the upstream")


def _wait_until_layer_stored(run: Run) -> None:
    wait_until_stored(run)
    (upstream,) = run.upstreams.values()
    layer = upstream.layers["cold"]
    body = send_request(run.deployment.address, upstream.blob_path("cold")).body
    assert body == layer.data, "the layer is not right after the fault"
    wait_for(lambda: run.deployment.stored_files(layer.digest), "the layer is stored")


def _prepare_disk(run: Run) -> None:
    _prepare(DISK_FULL_S)(run)
    mount_small_disk(run)


# What was on its way to the worker, up to a whole piece on each connection, is requested again by the next owner.
_OWNER_GETS = (_GETS[0], _GETS[1] + 2 * len(RANGES))
DISK_FULL_S = 30.0

WORKER_OR_DISK = Fault(
    "P13",
    "A worker dies or is frozen, or the disk fills, while ranges ahead are read",
    (
        _owner_fault("owner killed", signal.SIGKILL, RESPAWN_S, MIB),
        _owner_fault("owner frozen", signal.SIGSTOP, WATCHDOG_S, MIB),
        DeploymentVariant(
            "disk full",
            steps={State.BLOB_DOWNLOAD: _read_ahead_while_it_fails},
            outcomes={State.BLOB_DOWNLOAD: (attrs.evolve(right_ranges(DISK_FULL_S, (1, 20), None), is_stored=None),)},
            prepare=_prepare_disk,
            inject=fill_up,
            end=free_space,
            wait_until_recovered=_wait_until_layer_stored,
            checks={State.BLOB_DOWNLOAD: _check_received},
            workers=WORKERS,
            layer_bytes=LAYER_BYTES,
            reason="the rest of the layer is passed on from memory, in order",
        ),
    ),
)

FAULTS = (RANGE_AHEAD, WORKER_OR_DISK)
