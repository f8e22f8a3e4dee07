"""An upstream decides who may pull what (`access: upstream`): faults while it is asked about a login.

The worker that asks it is killed or stopped (P12), or its token service fails (U26). In each state, clients without a
login, with a wrong one, and with one that the upstream does not admit to the repository request the same as those with
the right login: they must get nothing more than without a fault.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import attrs

from tests.chaos.engine.case import State
from tests.chaos.engine.case_run import TIMEOUT_S
from tests.chaos.engine.deployment_case import DeploymentCaseRun, Steps
from tests.chaos.engine.isolated_upstream import REPO, IsolatedUpstream, wait_for
from tests.chaos.engine.limits import SLACK_S, Limits
from tests.chaos.engine.outcomes import OK, ObservedResponse, Outcome, error, stale
from tests.chaos.engine.run import Run
from tests.chaos.engine.variant import DeploymentVariant, Fault, do_nothing
from tests.chaos.faults.process_workers import RESPAWN_S, WATCHDOG_S, WORKERS
from tests.support import faults
from tests.support.busy_machine import is_within
from tests.support.fake_accounts import Account, FakeAccounts
from tests.support.fake_registry import Change
from tests.support.http_client import send_request
from tests.support.raw_http import Exchange, Request, ScriptedResponse
from tests.support.worker_state import worker_of_connection

CLIENTS = 8  # with one login, at the same time: enough that several workers have some
MAX_LOGINS = 200  # until one is found that a certain worker owns
PROBE = "probe/app"  # a repository that no login may pull from

ADMITTED = Account("warm", "password", frozenset({REPO}))
STRANGER = Account("stranger", "password", frozenset())
WRONG = Account("warm", "another password", frozenset())


def _decide_about_access(run: Run, **settings: str) -> None:
    accounts: dict[State, FakeAccounts] = {}
    for state, upstream in run.upstreams.items():
        upstream.extra_settings |= {"access": "upstream", **settings}
        accounts[state] = FakeAccounts(upstream.fake_registry, "scoped", [ADMITTED, STRANGER])
    run.data["accounts"] = accounts


def _path(case: DeploymentCaseRun) -> tuple[str, bytes, str]:
    """What is requested in a state: path, content and digest."""
    tag = "cached" if case.state in (State.TAG_CACHED, State.BLOB_CACHED) else "cold"
    if case.state in (State.TAG_CACHED, State.TAG_COLD):
        image = case.upstream.images[tag]
        return case.upstream.manifest_path(tag), image.body, image.digest
    layer = case.upstream.layers[tag]
    return case.upstream.blob_path(tag), layer.data, layer.digest


def _warm(case: DeploymentCaseRun) -> None:
    """Cache what is cached in this state, with a login that is admitted."""
    path, truth, digest = _path(case)
    wait_for(lambda: case.get(path, truth, Authorization=ADMITTED.header).is_right_and_whole, f"{path} is cached")
    wait_for(lambda: case.is_stored(digest), f"{path} is stored")


def _request_as_others(case: DeploymentCaseRun, expected: Mapping[Account | None, int], within_s: float) -> None:
    """Request the same as clients who may not have it. They get nothing but the statuses that are expected."""
    path, _, _ = _path(case)
    for account, status in expected.items():
        response = case.send(path, {"Authorization": account.header} if account else None)
        name = account.username if account else "nobody"
        case.check(response.status == status, f"{name} gets {response.status}, expected {status}")
        case.check(len(response.body) < 1000, f"{name} gets {len(response.body)} bytes")
        case.check(is_within(response.took_s, within_s, slack_s=SLACK_S), f"{name} waits {response.took_s:.1f} s")


# P12


class _HeldRequest:
    """The first request of a kind that an upstream does not answer until `release`."""

    def __init__(self, upstream: IsolatedUpstream, is_wanted: Callable[[Request, ScriptedResponse], bool]) -> None:
        self.exchange: Exchange | None = None
        self.release = threading.Event()
        self._upstream = upstream
        self._is_wanted = is_wanted
        self._lock = threading.Lock()
        upstream.on(None, self._hold)

    def _hold(self, request: Request, response: ScriptedResponse) -> ScriptedResponse:
        with self._lock:
            if self.exchange is not None or not self._is_wanted(request, response):
                return response
            exchanges = reversed(self._upstream.fake_registry.exchanges)
            self.exchange = next(each for each in exchanges if each.request is request)
        return attrs.evolve(response, before=self.release)


def _is_token_for(login: str, request: Request, _: ScriptedResponse) -> bool:
    return request.kind == "token" and request.header("Authorization") == login


def _worker_of(case: DeploymentCaseRun, held: _HeldRequest) -> int:
    """The worker whose request is held."""
    wait_for(lambda: held.exchange is not None, "the upstream is asked about access")
    assert held.exchange is not None
    port = case.upstream.fake_registry.listener.port
    return worker_of_connection(case.deployment, port, held.exchange.client_port)


def _find_login(case: DeploymentCaseRun) -> Account:
    """A login whose owner is the worker that the fault is for. A repository that it may not have is asked about."""
    victim = case.deployment.dockyard.worker_pids()[0]
    for number in range(MAX_LOGINS):
        login = Account(f"user-{number}", "password", frozenset({REPO}))
        case.run.data["accounts"][case.state].set(login)
        held = _HeldRequest(case.upstream, partial(_is_token_for, login.header))
        path = f"/v2/{case.upstream.prefix}/{PROBE}/manifests/latest"
        with ThreadPoolExecutor(1) as pool:
            response = pool.submit(case.send, path, {"Authorization": login.header})
            try:
                owner = _worker_of(case, held)
            finally:
                held.release.set()
            assert response.result().status == 403, response.result()
        if owner == victim:
            return login
    raise AssertionError(f"none of {MAX_LOGINS} logins is owned by worker {victim}")


def _ask_while_it_fails(case: DeploymentCaseRun) -> None:
    """Clients of one login wait for the check that the worker makes when the fault begins; others come afterwards."""
    path, truth, digest = _path(case)
    if case.state in (State.TAG_CACHED, State.BLOB_CACHED):
        _warm(case)
    login = _find_login(case)
    case.run.data["prepared"].wait(TIMEOUT_S)  # checks of access have a time limit: all are begun at the same time
    case.upstream.fake_registry.clear_exchanges()
    held = _HeldRequest(case.upstream, lambda request, response: request.method == "HEAD" and response.status == 200)
    limit_s = case.run.data["limit_s"]

    def request() -> ObservedResponse:
        response = case.get(path, truth, Authorization=login.header)
        return attrs.evolve(response, took_s=time.monotonic() - case.run.injected_at)  # not the time before the fault

    with ThreadPoolExecutor(CLIENTS) as pool:
        try:
            waiting = [pool.submit(request) for _ in range(CLIENTS)]
            assert _worker_of(case, held) == case.deployment.dockyard.worker_pids()[0], "another worker asks"
            case.wait_for_fault_during_download()
            _request_as_others(case, {None: 401, STRANGER: 403, WRONG: 401}, limit_s)
            responses = tuple(each.result() for each in waiting)
        finally:
            held.release.set()
    case.judge(case.outcomes[0], responses, digest)
    kind = "manifest" if "/manifests/" in path else "blob"
    heads = [each for each in case.upstream.requests(kind, "HEAD") if each.status == 200]
    case.record.seen += f"; {len(heads)} HEADs"
    case.check(len(heads) <= WORKERS + 2, f"the upstream was asked {len(heads)} times")


ASKING: Mapping[State, Steps] = dict.fromkeys(
    (State.TAG_CACHED, State.TAG_COLD, State.BLOB_CACHED, State.BLOB_COLD), _ask_while_it_fails
)


def admitted(within_s: float, gets: tuple[int, int]) -> Outcome:
    """The content, for all clients of the login that the upstream admits."""
    says = f"what the upstream admits them to within {within_s:g} s; others 401 or 403"
    return Outcome(f"ADM({within_s:g})", says, OK, within_s=within_s, gets=gets)


def _outcomes(within_s: float) -> dict[State, tuple[Outcome, ...]]:
    return {
        State.TAG_CACHED: (admitted(within_s, (0, 0)),),
        State.TAG_COLD: (admitted(within_s, (1, 2)),),
        State.BLOB_CACHED: (admitted(within_s, (0, 0)),),
        State.BLOB_COLD: (admitted(within_s, (1, WORKERS)),),
    }


def _prepare_worker(limit_s: float) -> Callable[[Run], None]:
    def prepare(run: Run) -> None:
        _decide_about_access(run)
        run.data |= {"limit_s": limit_s, "prepared": threading.Barrier(len(run.upstreams))}

    return prepare


def _signal(number: int) -> Callable[[Run], None]:
    def inject(run: Run) -> None:
        run.data["victim"] = run.deployment.dockyard.worker_pids()[0]
        os.kill(run.data["victim"], number)

    return inject


def _is_gone(run: Run) -> None:
    wait_for(lambda: run.data["victim"] not in run.deployment.dockyard.worker_pids(), "the worker is gone", WATCHDOG_S)


def _wait_for_workers(run: Run) -> None:
    wait_for(lambda: len(run.deployment.dockyard.worker_pids()) == WORKERS, "all workers")


def _worker_fault(name: str, number: int, limit_s: float) -> DeploymentVariant:
    return DeploymentVariant(
        name,
        steps=ASKING,
        outcomes=_outcomes(limit_s),
        prepare=_prepare_worker(limit_s),
        inject=_signal(number),
        verify=_is_gone,
        wait_until_recovered=_wait_for_workers,
        workers=WORKERS,
        may_reconnect=True,
        reconnects_within_s=limit_s + SLACK_S,
        recovery_s=RESPAWN_S,
        reason="another worker asks the upstream; connections to the worker break, and clients retry",
    )


ASKING_WORKER = Fault(
    "P12",
    "kill -9 or SIGSTOP of the worker that asks an upstream about access",
    (
        _worker_fault("killed", signal.SIGKILL, RESPAWN_S),
        _worker_fault("stopped", signal.SIGSTOP, WATCHDOG_S),
    ),
)


# U26

TTL_S = 1.0
LIMITS = Limits()
ADMISSION_ENDS: Mapping[str, str] = {"access_ttl": f"{TTL_S}s", "access_grace": "1h"}


def _request_after_admission(case: DeploymentCaseRun) -> None:
    """Somebody has been admitted to the repository; when that must be renewed, the token service fails."""
    path, truth, digest = _path(case)
    cached = case.upstream.images["cached"]
    admitted_by = case.upstream.manifest_path("cached")
    wait_for(lambda: _get(case, admitted_by, cached.body).is_right_and_whole, "the login is admitted")
    if case.state is not State.TAG_COLD:
        _warm(case)
    case.wait_for_fault()
    wait_for(lambda: time.monotonic() > case.run.injected_at + TTL_S, "the admission is no longer remembered")
    case.judge(case.outcomes[0], (_get(case, path, truth),), digest)
    case.check(case.upstream.requests("token"), "the token service was not asked")
    _request_as_others(case, case.run.data["others"], LIMITS.response())


def _get(case: DeploymentCaseRun, path: str, truth: bytes) -> ObservedResponse:
    response = case.send(path, {"Authorization": ADMITTED.header})
    # The form of errors is that without a challenge; that of 401 has Dockyard's own.
    headers = tuple((name, value) for name, value in response.headers if name.lower() != "www-authenticate")
    observed = ObservedResponse.of(attrs.evolve(response, headers=headers), truth)
    case.check_response(observed)
    return observed


AFTER_ADMISSION: Mapping[State, Steps] = dict.fromkeys(
    (State.TAG_CACHED, State.TAG_COLD, State.BLOB_CACHED), _request_after_admission
)


def _token_fault(
    name: str, change: Callable[[Run], Change], outcomes: Mapping[State, tuple[Outcome, ...]], *others: int
) -> DeploymentVariant:
    def prepare(run: Run) -> None:
        _decide_about_access(run, **ADMISSION_ENDS)
        run.data |= {"others": dict(zip((None, STRANGER, WRONG), others, strict=True)), "over": threading.Event()}

    def inject(run: Run) -> None:
        for state, upstream in run.upstreams.items():
            upstream.on("token", change(run))
            run.data["accounts"][state].revoke_tokens()

    def end(run: Run) -> None:
        run.data["over"].set()
        for upstream in run.upstreams.values():
            upstream.restore()

    def wait_until_recovered(run: Run) -> None:
        def is_fresh(upstream: IsolatedUpstream) -> bool:
            headers = {"Authorization": ADMITTED.header}
            response = send_request(run.deployment.address, upstream.manifest_path("cached"), headers)
            return response.status == 200 and response.header("Warning") is None

        for upstream in run.upstreams.values():
            wait_for(partial(is_fresh, upstream), "the admitted get a fresh response")

    is_outage = others[1] == 503  # a refusal is remembered for longer than the case takes
    return DeploymentVariant(
        name,
        steps=AFTER_ADMISSION,
        outcomes=outcomes,
        prepare=prepare,
        inject=inject,
        end=end,
        wait_until_recovered=wait_until_recovered if is_outage else do_nothing,
        limits=LIMITS,
        reason="who was admitted goes on for `access_grace`, but not after a refusal",
    )


def _in_grace(within_s: float) -> dict[State, tuple[Outcome, ...]]:
    return {
        State.TAG_CACHED: (stale(within_s),),
        State.TAG_COLD: (error(503, within_s, 504),),
        State.BLOB_CACHED: (
            Outcome("HIT", f"the cached copy within {within_s:g} s", OK, within_s=within_s, gets=(0, 0)),
        ),
    }


def _refused(within_s: float) -> dict[State, tuple[Outcome, ...]]:
    refused = attrs.evolve(error(401, within_s), is_stored=None)
    return dict.fromkeys((State.TAG_CACHED, State.TAG_COLD, State.BLOB_CACHED), (refused,))


TOKEN_SERVICE = Fault(
    "U26",
    "The token service of an upstream that decides about access fails",
    (
        _token_fault(
            "no response",
            lambda run: faults.silent(run.data["over"]),
            _in_grace(2 * LIMITS.check()),
            401,
            503,
            503,
        ),
        _token_fault("unavailable", lambda _: faults.error_response(503), _in_grace(LIMITS.no()), 401, 503, 503),
        _token_fault("refuses", lambda _: faults.error_response(401), _refused(LIMITS.no()), 401, 401, 401),
    ),
)

FAULTS = (ASKING_WORKER, TOKEN_SERVICE)
