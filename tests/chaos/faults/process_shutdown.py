"""SIGTERM during downloads, and kill -9 of all processes: P03, P09."""

import contextlib
import http.client
import signal
import threading
import time

import attrs

from tests.chaos.engine.case import State
from tests.chaos.engine.case_run import TIMEOUT_S
from tests.chaos.engine.deployment_case import (
    LOCAL_STEPS,
    DeploymentCaseRun,
    request_cached_tag,
    request_cold_tag,
    request_manifests,
)
from tests.chaos.engine.isolated_upstream import REPO, wait_for
from tests.chaos.engine.limits import SLACK_S
from tests.chaos.engine.outcomes import Outcome, cut, hit, hit1, new
from tests.chaos.engine.run import Run
from tests.chaos.engine.variant import MIB, DeploymentVariant, Fault
from tests.chaos.faults.process_workers import READ_BYTES, read_rest
from tests.support import faults
from tests.support.busy_machine import is_within
from tests.support.dockyard import Dockyard
from tests.support.http_client import StreamedResponse, send_request

DRAIN_S = 8  # 25 s by default
SHORT_DRAIN_S = 2
NOTICE_S = 1.0  # how long a load balancer has to notice that the server is not ready; 5 s in practice
EXIT_S = 5.0  # besides the drain
LAYER_BYTES = 12 * MIB
DOWNLOADS = 10
DOWNLOADS_IN_ALL = 20
RESTART_S = 5.0


# P03


def _drain(run: Run) -> None:
    """Do what the deployments in `ops/` do before SIGTERM: the server is not ready any more, but still serves."""
    (run.deployment.dockyard.storage / "run" / "draining").touch()
    wait_for(lambda: send_request(run.deployment.address, "/readyz").status == 503, "not ready", NOTICE_S)
    time.sleep(NOTICE_S)  # the time that a load balancer is given
    cases = len(run.upstreams)
    run.data["sigterm"] = threading.Barrier(cases, action=lambda: _terminate(run))


def _terminate(run: Run) -> None:
    process = run.deployment.dockyard._running
    process.send(signal.SIGTERM)
    run.data["terminated_at"] = run.injected_at = time.monotonic()
    wait_for(lambda: _is_refused(run.deployment.dockyard), "no new connections", EXIT_S)


def _is_refused(dockyard: Dockyard) -> bool:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", dockyard.port, timeout=1)) as connection:
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status == 503
        except (OSError, http.client.HTTPException):
            return True


def _tag_cached(case: DeploymentCaseRun) -> None:
    request_cached_tag(case)
    _send_sigterm(case)


def _tag_cold(case: DeploymentCaseRun) -> None:
    request_cold_tag(case)
    _send_sigterm(case)


def _manifest(case: DeploymentCaseRun) -> None:
    request_manifests(case)
    _send_sigterm(case)


def _blob_cached(case: DeploymentCaseRun) -> None:
    truth, path = case.upstream.layers["cached"], case.upstream.blob_path("cached")
    case.cache(path, truth.data)
    with contextlib.ExitStack() as stack:
        readers = [
            stack.enter_context(StreamedResponse(case.deployment.address, path, receive_buffer=READ_BYTES))
            for _ in range(DOWNLOADS)
        ]
        for reader in readers:
            reader.head().read(READ_BYTES)
        case.wait_for_fault()
        _send_sigterm(case)
        _wait_for_drain(case)
        responses = tuple(read_rest(case, reader) for reader in readers)
    case.judge(case.outcomes[0], responses, truth.digest)
    for each in responses:
        case.check_response(each)


def _blob_cold(case: DeploymentCaseRun) -> None:
    _download(case, 1)


def _blob_in_download(case: DeploymentCaseRun) -> None:
    _download(case, DOWNLOADS)


def _download(case: DeploymentCaseRun, clients: int) -> None:
    with case.download(clients) as crowd:
        case.wait_for_fault_during_download()
        _send_sigterm(case)
        _wait_for_drain(case)
        responses = case.finish_download(crowd)
    case.judge(case.outcomes[0], responses, case.upstream.layers["cold"].digest)


def _send_sigterm(case: DeploymentCaseRun) -> None:
    case.run.data["sigterm"].wait(TIMEOUT_S)


def _wait_for_drain(case: DeploymentCaseRun) -> None:
    """Hold a download that takes longer than the drain until the drain is over."""
    if case.variant.name != "short downloads":
        time.sleep(SHORT_DRAIN_S + 1)


def _wait_for_exit(run: Run) -> None:
    """Wait for exit status 0, within the drain time and a little."""
    dockyard, process = run.deployment.dockyard, run.deployment.dockyard._running
    drain_s = float(run.environment.settings["server"]["drain_timeout"].removesuffix("s"))
    within_s = drain_s + EXIT_S - (time.monotonic() - run.data["terminated_at"])
    wait_for(lambda: not process.is_running, "the exit", within_s)
    assert process.popen.returncode == 0, f"exit status {process.popen.returncode}"
    dockyard._process = None


def _restart(run: Run) -> None:
    run.deployment.dockyard.start()


def _wait_until_ready(run: Run) -> None:
    wait_for(lambda: send_request(run.deployment.address, "/readyz").status == 200, "ready", RESTART_S)
    upstream = run.control
    assert send_request(run.deployment.address, upstream.blob_path("cached")).body == upstream.layers["cached"].data


def _terminated(name: str, drain_s: int, cached: Outcome, cold: Outcome) -> DeploymentVariant:
    return DeploymentVariant(
        name,
        steps={
            State.TAG_CACHED: _tag_cached,
            State.TAG_COLD: _tag_cold,
            State.MANIFEST: _manifest,
            State.BLOB_CACHED: _blob_cached,
            State.BLOB_COLD: _blob_cold,
            State.BLOB_DOWNLOAD: _blob_in_download,
        },
        outcomes={
            State.TAG_CACHED: (hit1(),),
            State.TAG_COLD: (new(),),
            State.MANIFEST: (hit(), new()),
            State.BLOB_CACHED: (cached,),
            State.BLOB_COLD: (cold,),
            State.BLOB_DOWNLOAD: (cold,),
        },
        inject=_drain,
        verify=_wait_for_exit,
        end=_restart,
        wait_until_recovered=_wait_until_ready,
        layer_bytes=LAYER_BYTES,
        checks_control_client=False,
        settings={"server": {"drain_timeout": f"{drain_s}s"}},
        reason="SIGTERM closes the listener at once; the file `run/draining` makes `/readyz` fail before that",
    )


_CUT = attrs.evolve(cut(SHORT_DRAIN_S + EXIT_S), is_stored=None)
TERMINATED = Fault(
    "P03",
    "SIGTERM during downloads",
    (
        _terminated("short downloads", DRAIN_S, hit(), new()),
        _terminated("downloads longer than the drain", SHORT_DRAIN_S, _CUT, _CUT),
    ),
)


# P09


def _kill_all_and_restart(run: Run) -> None:
    dockyard = run.deployment.dockyard
    upstream = run.upstreams[State.BLOB_DOWNLOAD]
    run.data["partial_files"] = list(run.deployment.partial_files())
    dockyard.kill()
    upstream.resume_download.set()
    if run.has_bucket:
        run.s3_proxy.requests.clear()
    first_s = dockyard.start_took_s
    dockyard.start()
    is_in_time = is_within(dockyard.start_took_s, 0, slack_s=RESTART_S + SLACK_S, control_s=first_s)
    run.check(is_in_time, f"the start takes {dockyard.start_took_s:.1f} s, the first one took {first_s:.1f} s")


def _had_downloads(run: Run) -> None:
    assert run.data["partial_files"], "no download was running"
    if run.has_bucket:
        lists = [each.target for each in run.s3_proxy.requests if each.method == "GET" and "list-type" in each.target]
        assert not lists, "the bucket is listed at start"


def _wait_for_downloads(run: Run) -> None:
    wait_for(lambda: not run.deployment.partial_files(), "no download is running")


def _join_many_downloads(case: DeploymentCaseRun) -> None:
    """Twenty downloads: ten clients of one layer, and one client of each of nineteen others."""
    upstream, address = case.upstream, case.deployment.address
    others = [
        upstream.fake_registry.add_blob(f"layer {number} of P09".encode() * 100_000)
        for number in range(DOWNLOADS_IN_ALL - 1)
    ]
    paths = [f"/v2/{upstream.prefix}/{REPO}/blobs/{digest}" for digest in others]
    with case.download() as crowd, contextlib.ExitStack() as stack:
        stalled = upstream.fake_registry.on("blob", faults.stalled(MIB // 2, upstream.resume_download), method="GET")
        readers = [stack.enter_context(StreamedResponse(address, path)).head() for path in paths]
        for reader in readers:
            assert reader.read(1000)
        case.wait_for_fault_during_download()
        upstream.fake_registry.remove_rules(stalled)
        responses = case.finish_download(crowd)
        ends = [reader.rest()[1] for reader in readers]
    case.check(all(end in ("fin", "rst") for end in ends), f"downloads of a killed server end by {set(ends)}")
    case.judge(case.outcomes[0], responses, upstream.layers["cold"].digest)
    for path in paths:
        response = send_request(address, path)
        case.check(response.status == 200 and response.is_complete, "a layer cannot be pulled after the restart")


_RESTARTED = {
    State.TAG_CACHED: (attrs.evolve(hit1(), within_s=RESTART_S),),
    State.TAG_COLD: (new(),),
    State.MANIFEST: (hit(), new()),
    State.BLOB_CACHED: (attrs.evolve(hit(), within_s=1.0),),
    State.BLOB_COLD: (new(),),
    State.BLOB_DOWNLOAD: (attrs.evolve(cut(RESTART_S), is_stored=None),),
}


def _killed(name: str, *, has_bucket: bool) -> DeploymentVariant:
    return DeploymentVariant(
        name,
        steps={**LOCAL_STEPS, State.BLOB_DOWNLOAD: _join_many_downloads},
        outcomes=_RESTARTED,
        inject=_kill_all_and_restart,
        verify=_had_downloads,
        wait_until_recovered=_wait_for_downloads,
        checks_control_client=False,
        has_bucket=has_bucket,
        workers=4,
    )


ALL_KILLED = Fault(
    "P09",
    "kill -9 of all processes during twenty downloads",
    (_killed("with a bucket", has_bucket=True), _killed("local", has_bucket=False)),
)

FAULTS = (TERMINATED, ALL_KILLED)
