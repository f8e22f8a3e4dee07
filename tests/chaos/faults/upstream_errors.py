"""Error responses of an upstream: 401, 403, 404, 429, 5xx, and a token service that is down: U12 to U14, U17, U18."""

import attrs

from tests.chaos.engine.case import State
from tests.chaos.engine.isolated_upstream import IsolatedUpstream
from tests.chaos.engine.outcomes import (
    UNAFFECTED,
    Observation,
    Outcome,
    cut,
    either,
    error,
    hit,
    new,
    resumed,
    stale,
)
from tests.chaos.engine.run import Environment
from tests.chaos.engine.upstream_case import UpstreamCaseRun
from tests.chaos.engine.variant import Fault, UpstreamVariant, do_nothing
from tests.chaos.faults.upstream_checks import L, direct_client_gets
from tests.support import faults
from tests.support.fake_auth import FakeTokenService, bearer_challenge
from tests.support.fake_registry import basic

USER, PASSWORD = "ann", "canary-password-of-the-upstream"
DEFAULT_LIMIT_S = 5.0


def _always(status: int, code: str = "UNAVAILABLE") -> UpstreamVariant:
    """Every request gets an error of the registry."""

    def inject(upstream: IsolatedUpstream, _: State) -> None:
        upstream.on("manifest", faults.error_response(status, code))
        upstream.on("blob", faults.error_response(status, code))

    return UpstreamVariant(str(status), inject=inject, verify=direct_client_gets(f"{status} whole"), outcomes={})


REFUSED_LOGIN = (
    "a rejected login is a response, not an outage: 403 with a login, and 404 without one, "
    "because registries reject anonymous requests for unknown repositories"
)

# U12


def _add_login(upstream: IsolatedUpstream, _: Environment) -> None:
    upstream.extra_settings["auth"] = {"type": "basic", "username": USER, "password": PASSWORD}
    listener = upstream.fake_registry.listen("token")
    upstream.token_proxy = upstream.add_proxy(listener.port)
    upstream.tokens = FakeTokenService(
        upstream.fake_registry, realm=f"{upstream.token_proxy.url}/token", login=basic(USER, PASSWORD)
    )


def _loop(upstream: IsolatedUpstream, _: State) -> None:
    realm = f"{upstream.token_proxy.url}/token" if upstream.token_proxy else ""
    for kind in ("manifest", "blob", "ping"):
        upstream.on(
            kind, lambda request, response: faults.challenged(bearer_challenge(realm, request.repo))(request, response)
        )


def _costs_little(case: UpstreamCaseRun, observation: Observation) -> None:
    tokens, others = len(observation.requests_of("token")), len(observation.requests_of("manifest", "blob", "ping"))
    case.check(tokens <= 2, f"{tokens} token requests")
    # A cached tag: with the token, a new one, without, and a GET. A download: one of them before the fault.
    most = 4 if case.state in (State.TAG_CACHED, State.BLOB_DOWNLOAD) else 3
    case.check(others <= most, f"{others} registry requests")


def _denied(status: int) -> dict[State, tuple[Outcome, ...]]:
    denied = error(status, L.bad_content())
    return {
        State.TAG_CACHED: (denied,),
        State.TAG_COLD: (denied,),
        State.MANIFEST: (hit(), denied),
        State.BLOB_CACHED: (hit(),),
        State.BLOB_COLD: (denied,),
        State.BLOB_DOWNLOAD: (either(cut(L.breaks()), resumed(1)),),
    }


_LOOP = UpstreamVariant(
    "with a login",
    prepare=_add_login,
    inject=_loop,
    verify=direct_client_gets("401 whole"),
    outcomes=_denied(403),
    breaks_download=True,
    checks=dict.fromkeys(_denied(403), _costs_little),
    reason=REFUSED_LOGIN,
)

LOGIN_LOOP = Fault(
    "U12",
    "401 for every token",
    (
        _LOOP,
        attrs.evolve(
            _LOOP, name="without a login", prepare=lambda upstream, _: upstream.add_tokens(), outcomes=_denied(404)
        ),
    ),
)

# U13


def _limited(retry_after: str | None, window_s: float) -> UpstreamVariant:
    def inject(upstream: IsolatedUpstream, _: State) -> None:
        upstream.on("manifest", faults.error_response(429, "TOOMANYREQUESTS", retry_after))
        upstream.on("blob", faults.error_response(429, "TOOMANYREQUESTS", retry_after))

    refused = error(429, L.at_once())
    return UpstreamVariant(
        "without Retry-After" if retry_after is None else f"Retry-After {retry_after}",
        inject=inject,
        verify=direct_client_gets("429 whole"),
        outcomes={
            State.TAG_CACHED: (stale(L.at_once()),),
            State.TAG_COLD: (refused,),
            State.MANIFEST: (hit(), refused),
            State.BLOB_CACHED: (hit(),),
            State.BLOB_COLD: (refused,),
            # Four attempts, each after Retry-After but at most ten seconds.
            State.BLOB_DOWNLOAD: (either(cut(L.breaks() + 4 * min(window_s, 10.0)), resumed(1)),),
        },
        breaks_download=True,
        remembers_outage=window_s > 2,
        checks={State.TAG_COLD: lambda case, seen: _is_asked_once_per_window(case, seen, window_s)},
        recovery_s=window_s + 5.0,
        workers=4,
    )


def _is_asked_once_per_window(case: UpstreamCaseRun, observation: Observation, window_s: float) -> None:
    upstream = case.upstream
    retry_after = observation.responses[0].header("Retry-After") or ""
    case.check(retry_after.isdigit() and 1 <= int(retry_after) <= 60, f"Retry-After {retry_after!r}")
    for _ in range(20):
        case.get(upstream.manifest_path("cold"), upstream.images["cold"].body)
    if window_s > 2:
        case.check(len(upstream.requests()) == 1, f"{len(upstream.requests())} requests upstream in one window")


LIMITED = Fault(
    "U13",
    "429: too many requests",
    (
        _limited(None, DEFAULT_LIMIT_S),
        _limited("1", 1.0),
        _limited("60", 60.0),
        _limited("999999", 60.0),
        _limited("abc", DEFAULT_LIMIT_S),
    ),
)

# U14


def _failing(status: int) -> UpstreamVariant:
    failed = error(503, L.bad_content())
    return attrs.evolve(
        _always(status),
        outcomes={
            State.TAG_CACHED: (attrs.evolve(stale(L.bad_content()), requests=(1, 2)),),
            State.TAG_COLD: (attrs.evolve(failed, requests=(1, 3)),),
            State.MANIFEST: (hit(), attrs.evolve(failed, requests=(1, 3))),
            State.BLOB_CACHED: (hit(),),
            State.BLOB_COLD: (attrs.evolve(failed, within_s=2 * L.bad_content(), gets=(1, 3)),),
            State.BLOB_DOWNLOAD: (cut(L.breaks()),),
        },
        breaks_download=True,
    )


def _fail_twice(upstream: IsolatedUpstream, state: State) -> None:
    if state is State.BLOB_CACHED:
        upstream.on("blob", faults.error_response(503, "UNAVAILABLE"))
        return
    upstream.on_once(None, faults.error_response(503, "UNAVAILABLE"), times=2 if state is State.BLOB_DOWNLOAD else 1)


FAILING = Fault(
    "U14",
    "Server errors",
    (
        *(_failing(status) for status in (503, 500, 502, 504)),
        attrs.evolve(
            _failing(503),
            name="503 at first",
            inject=_fail_twice,
            remembers_outage=False,
            outcomes={
                **_failing(503).outcomes,
                State.BLOB_COLD: (new(2),),
                State.BLOB_DOWNLOAD: (resumed(3),),
            },
        ),
    ),
)

# U18


def _absent(status: int, expected: int, *, has_login: bool) -> UpstreamVariant:
    # With a login: once without it, then the challenge of /v2/ and a token, and HEAD and GET with that.
    no = attrs.evolve(error(expected, L.bad_content()), requests=(1, 5 if has_login else 3))
    return attrs.evolve(
        _always(status, "DENIED" if status == 403 else "UNKNOWN"),
        name=str(status) if status == 404 else f"403 {'with' if has_login else 'without'} a login",
        prepare=_add_login if has_login else do_nothing,
        outcomes={
            State.TAG_CACHED: (no,),
            State.TAG_COLD: (no,),
            State.MANIFEST: (hit(), no),
            State.BLOB_CACHED: (hit(),),
            State.BLOB_COLD: (attrs.evolve(no, gets=(1, 1) if status == 404 else (1, 2)),),
            State.BLOB_DOWNLOAD: (cut(L.breaks()),),
        },
        breaks_download=True,
        recovery_s=1.0,
        reason=REFUSED_LOGIN if status == 403 else "",
    )


ABSENT = Fault(
    "U18",
    "404 and 403: a response, not an outage",
    (
        _absent(404, 404, has_login=False),
        _absent(403, 403, has_login=True),
        _absent(403, 404, has_login=False),
    ),
)

# U17


def _lose_tokens(upstream: IsolatedUpstream, state: State) -> None:
    assert upstream.tokens is not None
    assert upstream.token_proxy is not None
    if state is not State.BLOB_DOWNLOAD:  # its body has been authorized already
        upstream.tokens.revoke_all()
    upstream.token_proxy.refuse_connections()


def _lose_service(upstream: IsolatedUpstream, _: State) -> None:
    assert upstream.token_proxy is not None
    upstream.token_proxy.refuse_connections()


def _is_service_away(upstream: IsolatedUpstream, _: State) -> None:
    seen = upstream.request_directly("/token", proxy=upstream.token_proxy)
    assert seen == "refused", f"a direct client gets {seen!r} at the token service"


_NO_TOKENS = UpstreamVariant(
    "token expired",
    prepare=lambda upstream, _: upstream.add_tokens(),
    inject=_lose_tokens,
    verify=_is_service_away,
    outcomes={
        State.TAG_CACHED: (stale(L.check()),),
        State.TAG_COLD: (error(503, L.lookup_error()),),
        State.MANIFEST: (hit(), error(503, L.lookup_error())),
        State.BLOB_CACHED: (hit(),),
        State.BLOB_COLD: (error(503, L.lookup_error()),),
        State.BLOB_DOWNLOAD: (resumed(0),),
    },
)

NO_TOKENS = Fault(
    "U17",
    "The token service is down",
    (
        _NO_TOKENS,
        attrs.evolve(
            _NO_TOKENS,
            name="token valid",
            workers=1,  # each has its own token
            inject=_lose_service,
            outcomes={**UNAFFECTED, State.BLOB_DOWNLOAD: (resumed(0),)},
        ),
    ),
)

FAULTS = (LOGIN_LOOP, LIMITED, FAILING, NO_TOKENS, ABSENT)
