"""A worker is killed or stopped (SIGSTOP): P01, P02, P04."""

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

import attrs

from tests.chaos.engine.case import State
from tests.chaos.engine.deployment_case import (
    DeploymentCaseRun,
    Steps,
    request_cached_tag,
    request_cold_blob,
    request_cold_tag,
)
from tests.chaos.engine.isolated_upstream import REPO, wait_for
from tests.chaos.engine.limits import SLACK_S
from tests.chaos.engine.outcomes import OK, Observation, ObservedResponse, Outcome, cut, hit, hit1, new
from tests.chaos.engine.run import Run
from tests.chaos.engine.variant import MIB, DeploymentVariant, Fault
from tests.support.busy_machine import busy_slack_s
from tests.support.http_client import StreamedResponse, send_request
from tests.support.worker_state import download_owners, workers_by_client_port

WORKERS = 4
LAYER_BYTES = 12 * MIB
CLIENTS = 24  # of one layer: enough that each worker has some
CONNECTIONS = 10
RESPAWN_S = 2.0
WATCHDOG_S = 7.0
RESUMED_AFTER_S = 2.5
READ_BYTES = 64 * 1024


def cut_with_worker(within_s: float) -> Outcome:
    """The outcome for clients of the worker itself. The layer is stored nevertheless, by another worker."""
    return attrs.evolve(cut(within_s), is_stored=None)


def continued(gets: int) -> Outcome:
    """The outcome for clients of the other workers: the whole layer, with at most so many GETs in all."""
    says = "the whole layer; another worker continues where it stopped"
    return Outcome(f"RES({gets - 1})", says, OK, gets=(1, gets), is_stored=True, has_ranges=gets > 1)


# The steps of the states


def _tag_cached(case: DeploymentCaseRun) -> None:
    request_cached_tag(case)
    check_new_connections(case, case.upstream.manifest_path("cached"), case.upstream.images["cached"].body)


def _tag_cold(case: DeploymentCaseRun) -> None:
    request_cold_tag(case)
    check_new_connections(case, case.upstream.manifest_path("cold"), case.upstream.images["cold"].body)


def _manifest(case: DeploymentCaseRun) -> None:
    case.cache(case.upstream.digest_path("cached"), case.upstream.images["cached"].body)
    case.wait_for_fault()
    for tag, outcome in zip(("cached", "cold"), case.outcomes, strict=True):
        image = case.upstream.images[tag]
        case.request_and_judge(case.upstream.digest_path(tag), image.body, outcome, image.digest)
        check_new_connections(case, case.upstream.digest_path(tag), image.body)


def _blob_cached(case: DeploymentCaseRun) -> None:
    path, truth = case.upstream.blob_path("cached"), case.upstream.layers["cached"]
    case.cache(path, truth.data)
    with contextlib.ExitStack() as stack:
        readers = [
            stack.enter_context(StreamedResponse(case.deployment.address, path, receive_buffer=READ_BYTES))
            for _ in range(CLIENTS)
        ]
        for reader in readers:
            assert truth.data.startswith(reader.head().read(READ_BYTES))
        by_port = workers_by_client_port(case.deployment)
        case.run.data["readers"] = {reader: by_port[reader.socket.getsockname()[1]] for reader in readers}
        case.wait_for_fault()
        victim, workers = case.run.data["victim"], case.run.data["readers"]
        readers.sort(key=lambda reader: workers[reader] != victim)  # the time of those that are cut is checked
        responses = {reader: read_rest(case, reader) for reader in readers}
    judge_groups(case, responses, case.run.data["readers"], truth.digest)
    case.request_and_judge(path, truth.data, hit(), truth.digest)


def _blob_cold(case: DeploymentCaseRun) -> None:
    request_cold_blob(case)
    check_new_connections(case, case.upstream.blob_path("cold"), case.upstream.layers["cold"].data)


def _download(case: DeploymentCaseRun) -> None:
    truth = case.upstream.layers["cold"]
    with case.download(CLIENTS) as crowd:
        (owner,) = (
            pid
            for pid, paths in download_owners(case.deployment).items()
            if any(truth.digest[7:] in path for path in paths)
        )
        by_port = workers_by_client_port(case.deployment)
        workers = {id(each): by_port[each.socket.getsockname()[1]] for each in crowd.members}
        assert set(workers.values()) == set(case.deployment.dockyard.worker_pids()), "not every worker has a client"
        case.run.data["owner"] = owner
        case.wait_for_fault_during_download()
        responses = case.finish_download(crowd)
        by_client = dict(zip(map(id, crowd.members), responses, strict=True))
    judge_groups(case, by_client, workers, truth.digest)
    sent = sum(each.sent_bytes for each in case.upstream.fake_registry.received("blob"))
    case.check(sent <= 2 * truth.size, f"{sent} bytes from upstream for a layer of {truth.size}")


def read_rest(case: DeploymentCaseRun, reader: StreamedResponse) -> ObservedResponse:
    """Read a response with the cached layer to its end."""
    truth = case.upstream.layers["cached"].data
    before = reader.received
    body, ended = reader.rest()
    is_right = truth.startswith(body, before) and (ended != "length" or before + len(body) == len(truth))
    took_s = time.monotonic() - case.run.injected_at
    return ObservedResponse(reader.status, reader.headers, reader.received, is_right, ended == "length", took_s, ended)


def judge_groups(
    case: DeploymentCaseRun, responses: dict[object, ObservedResponse], workers: dict[object, int | None], digest: str
) -> None:
    """Judge the responses of the affected worker apart from those of the others."""
    victim = case.run.data["victim"]
    others, direct = case.outcomes
    groups = {
        outcome: tuple(each for client, each in responses.items() if (workers[client] == victim) is is_direct)
        for outcome, is_direct in ((others, False), (direct, True))
    }
    case.judge(others, groups[others], digest)
    case.record.problems += direct.judge(Observation(groups[direct], (), is_stored=True))
    ends = Counter(each.describe() for each in groups[direct])
    case.record.seen += f"; of that worker: {', '.join(f'{count} x {end}' for end, count in ends.items())}"
    for each in groups[direct]:
        case.check(each.is_right, "a wrong byte")


def check_new_connections(case: DeploymentCaseRun, path: str, truth: bytes) -> None:
    """Connect several times: no connection is refused, and each gets its response in time."""
    limit = case.run.data["limit_s"] + busy_slack_s(SLACK_S)
    for _ in range(CONNECTIONS):
        try:
            response = case.send(path, timeout_s=limit)
            case.check(
                (response.status, response.body == truth) == (200, True), f"a new connection gets {response.status}"
            )
        except OSError as exc:
            case.check(False, f"a new connection fails: {exc!r}")
    if case.reconnects:
        case.record.seen += f"; {case.reconnects} connections broke with the worker and were made again"


# The faults


def _kill_owner(run: Run) -> None:
    _kill(run, run.data["owner"])


def _kill_another(run: Run) -> None:
    _kill(run, next(pid for pid in run.deployment.dockyard.worker_pids() if pid != run.data["owner"]))


def _kill(run: Run, pid: int) -> None:
    run.data |= {"victim": pid, "limit_s": RESPAWN_S}
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), "the worker is dead with all its threads", RESPAWN_S)


def _is_killed(run: Run) -> None:
    assert run.data["victim"] not in run.deployment.dockyard.worker_pids(), "no worker was killed"


def _wait_for_workers(run: Run) -> None:
    """Wait until all workers serve, and no partial file is left."""
    deployment = run.deployment
    wait_for(lambda: len(deployment.dockyard.worker_pids()) == WORKERS, "four workers")
    wait_for(lambda: not deployment.partial_files(), "no partial file")
    upstream = run.control
    for _ in range(4 * WORKERS):
        assert send_request(deployment.address, upstream.blob_path("cached")).body == upstream.layers["cached"].data


STEPS: Mapping[State, Steps] = {
    State.TAG_CACHED: _tag_cached,
    State.TAG_COLD: _tag_cold,
    State.MANIFEST: _manifest,
    State.BLOB_CACHED: _blob_cached,
    State.BLOB_COLD: _blob_cold,
    State.BLOB_DOWNLOAD: _download,
}


def _outcomes(gets: int, cut_s: float) -> dict[State, tuple[Outcome, ...]]:
    return {
        State.TAG_CACHED: (hit1(),),
        State.TAG_COLD: (new(),),
        State.MANIFEST: (hit(), new()),
        State.BLOB_CACHED: (hit(), cut_with_worker(cut_s)),
        State.BLOB_COLD: (new(),),
        State.BLOB_DOWNLOAD: (continued(gets), cut_with_worker(cut_s)),
    }


OWNER_KILLED = Fault(
    "P01",
    "kill -9 of the worker that fetches",
    (
        DeploymentVariant(
            "owner",
            steps=STEPS,
            outcomes=_outcomes(2, RESPAWN_S),
            inject=_kill_owner,
            verify=_is_killed,
            wait_until_recovered=_wait_for_workers,
            recovery_s=RESPAWN_S,
            workers=WORKERS,
            layer_bytes=LAYER_BYTES,
            reconnects_within_s=RESPAWN_S + SLACK_S,
        ),
    ),
)

ANOTHER_KILLED = Fault(
    "P02",
    "kill -9 of a worker that does not fetch",
    (
        DeploymentVariant(
            "another",
            steps=STEPS,
            outcomes=_outcomes(1, RESPAWN_S),
            inject=_kill_another,
            verify=_is_killed,
            wait_until_recovered=_wait_for_workers,
            recovery_s=RESPAWN_S,
            workers=WORKERS,
            layer_bytes=LAYER_BYTES,
            reconnects_within_s=RESPAWN_S + SLACK_S,
        ),
    ),
)


def _stop(run: Run) -> None:
    pid = run.data["owner"]
    run.data |= {"victim": pid, "limit_s": WATCHDOG_S}
    os.kill(pid, signal.SIGSTOP)


def _stop_for_a_while(run: Run) -> None:
    _stop(run)
    threading.Timer(RESUMED_AFTER_S, os.kill, (run.data["victim"], signal.SIGCONT)).start()


def _is_resumed(run: Run) -> None:
    assert run.data["victim"] in run.deployment.dockyard.worker_pids(), "the worker was killed before it was resumed"


def _move_tag(case: DeploymentCaseRun) -> None:
    """The tag moves upstream while its owner may be stopped; afterwards it has moved here, too."""
    path = case.upstream.manifest_path("cached")
    old, fresh = case.upstream.images["cached"], case.upstream.images["cold"]
    case.cache(path, old.body)
    case.wait_for_fault()
    case.upstream.fake_registry.add_manifest(REPO, "cached", fresh.body, fresh.media_type)
    case.request_and_judge(path, fresh.body, case.outcomes[0], fresh.digest)
    check_new_connections(case, path, fresh.body)


def _check_tag_pointer(run: Run) -> None:
    """The worker that was stopped has not written the pointer that it knew before."""
    upstream = run.upstreams[State.TAG_CACHED]
    pointer = run.deployment.dockyard.storage / "cache" / "manifests" / upstream.prefix / REPO / "tags" / "cached"
    for _ in range(4 * WORKERS):
        response = send_request(run.deployment.address, upstream.manifest_path("cached"))
        assert response.body == upstream.images["cold"].body, "the tag has moved back"
    assert pointer.read_text() == upstream.images["cold"].digest, "the pointer of the tag has moved back"


def _stopped_outcomes(direct: Outcome) -> dict[State, tuple[Outcome, ...]]:
    within = {"within_s": WATCHDOG_S}
    return {
        State.TAG_CACHED: (attrs.evolve(new(), heads=(1, 2), is_stored=None, **within),),
        State.TAG_COLD: (attrs.evolve(new(2), **within),),
        State.MANIFEST: (attrs.evolve(hit(), **within), attrs.evolve(new(2), **within)),
        State.BLOB_CACHED: (hit(), direct),
        State.BLOB_COLD: (attrs.evolve(new(WORKERS), is_stored=None, **within),),
        State.BLOB_DOWNLOAD: (attrs.evolve(continued(WORKERS), is_stored=None, has_ranges=False), direct),
    }


def _stopped(
    name: str, inject: Callable[[Run], None], verify: Callable[[Run], None], direct: Outcome, recovery_s: float
) -> DeploymentVariant:
    return DeploymentVariant(
        name,
        steps={**STEPS, State.TAG_CACHED: _move_tag},
        outcomes=_stopped_outcomes(direct),
        inject=inject,
        verify=verify,
        wait_until_recovered=_wait_for_workers,
        check_after=_check_tag_pointer,
        workers=WORKERS,
        layer_bytes=LAYER_BYTES,
        may_reconnect=True,
        reconnects_within_s=WATCHDOG_S + SLACK_S,
        recovery_s=recovery_s,
        reason="the kernel assigns connections to a stopped worker, too: they break with it, and clients retry",
    )


def _wait_killed(run: Run) -> None:
    victim = run.data["victim"]
    wait_for(lambda: victim not in run.deployment.dockyard.worker_pids(), "the watchdog kills the worker", WATCHDOG_S)


OWNER_STOPPED = Fault(
    "P04",
    "SIGSTOP of the worker that fetches",
    (
        _stopped("until it is killed", _stop, _wait_killed, cut_with_worker(WATCHDOG_S), RESPAWN_S),
        _stopped(
            "resumed before it is killed",
            _stop_for_a_while,
            _is_resumed,
            Outcome("HIT", "a pause, then the rest", OK, within_s=WATCHDOG_S),
            RESPAWN_S,
        ),
    ),
)

FAULTS = (OWNER_KILLED, ANOTHER_KILLED, OWNER_STOPPED)
