"""Answers that refuse: logins that nobody accepts, limits, errors of the server, and that there is no such thing."""

import attrs

from tests.chaos.cells import State
from tests.chaos.lanes import Lane
from tests.chaos.outcomes import Outcome, Seen, cut, either, error, hit, hit1, new, resumed, stale
from tests.chaos.stories import Fault, Story, Trouble, World, nothing
from tests.chaos.upstream.proofs import L, sees
from tests.support import faults
from tests.support.fake_auth import FakeTokenService, bearer_challenge
from tests.support.fake_registry import basic

USER, PASSWORD = "ann", "canary-password-of-the-upstream"
DEFAULT_LIMIT_S = 5.0
REFUSED_LOGIN_S = 30.0


def _answering(status: int, code: str = "UNAVAILABLE") -> Trouble:
    """Everything is answered with an error of the registry."""

    def strike(lane: Lane, _: State) -> None:
        lane.on("manifest", faults.error_response(status, code))
        lane.on("blob", faults.error_response(status, code))

    return Trouble(str(status), strike=strike, prove=sees(f"{status} whole"), outcomes={})


REFUSED_LOGIN = "a refused login is an answer: 403, and without a login 404, as registries mean it"

# U12


def _add_login(lane: Lane, _: World) -> None:
    lane.upstream["auth"] = {"type": "basic", "username": USER, "password": PASSWORD}
    listener = lane.fake_registry.listen("token")
    lane.token_way = lane.add_way(listener.port)
    lane.tokens = FakeTokenService(lane.fake_registry, realm=f"{lane.token_way.url}/token", login=basic(USER, PASSWORD))


def _loop(lane: Lane, _: State) -> None:
    realm = f"{lane.token_way.url}/token" if lane.token_way else ""
    for kind in ("manifest", "blob", "ping"):
        lane.on(kind, lambda request, answer: faults.challenged(bearer_challenge(realm, request.repo))(request, answer))


def _costs_little(story: Story, seen: Seen) -> None:
    tokens, others = len(seen.asked("token")), len(seen.asked("manifest", "blob", "ping"))
    story.record.check(tokens <= 2, f"{tokens} token requests")
    most = 3 if story.state is not State.BLOB_DOWNLOAD else 4  # the one that broke comes before
    story.record.check(others <= most, f"{others} registry requests")


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


_LOOP = Trouble(
    "with a login",
    prepare=_add_login,
    strike=_loop,
    prove=sees("401 whole"),
    outcomes=_denied(403),
    breaks=True,
    more=dict.fromkeys(_denied(403), _costs_little),
    reason=REFUSED_LOGIN,
)

LOGIN_LOOP = Fault(
    "U12",
    "401 again and again: a token that nobody accepts",
    (
        _LOOP,
        attrs.evolve(_LOOP, name="without a login", prepare=lambda lane, _: lane.add_tokens(), outcomes=_denied(404)),
    ),
)

# U13


def _limited(retry_after: str | None, window_s: float) -> Trouble:
    def strike(lane: Lane, _: State) -> None:
        lane.on("manifest", faults.error_response(429, "TOOMANYREQUESTS", retry_after))
        lane.on("blob", faults.error_response(429, "TOOMANYREQUESTS", retry_after))

    refused = error(429, L.at_once())
    return Trouble(
        "without Retry-After" if retry_after is None else f"Retry-After {retry_after}",
        strike=strike,
        prove=sees("429 whole"),
        outcomes={
            State.TAG_CACHED: (stale(L.at_once()),),
            State.TAG_COLD: (refused,),
            State.MANIFEST: (hit(), refused),
            State.BLOB_CACHED: (hit(),),
            State.BLOB_COLD: (refused,),
            # Four attempts that wait as told, ten seconds at the most.
            State.BLOB_DOWNLOAD: (either(cut(L.breaks() + 4 * min(window_s, 10.0)), resumed(1)),),
        },
        breaks=True,
        stays_stale=window_s > 2,
        more={State.TAG_COLD: lambda story, seen: _is_asked_once_per_window(story, seen, window_s)},
        recovery_s=window_s + 5.0,
        workers=4,
    )


def _is_asked_once_per_window(story: Story, seen: Seen, window_s: float) -> None:
    lane = story.lane
    retry_after = seen.got[0].header("Retry-After") or ""
    story.record.check(retry_after.isdigit() and 1 <= int(retry_after) <= 60, f"Retry-After {retry_after!r}")
    for _ in range(20):
        story.get(lane.manifest_path("cold"), lane.images["cold"].body)
    if window_s > 2:
        story.record.check(len(lane.seen()) == 1, f"{len(lane.seen())} requests upstream in one window")


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


def _failing(status: int) -> Trouble:
    failed = error(503, L.bad_content())
    return attrs.evolve(
        _answering(status),
        outcomes={
            State.TAG_CACHED: (attrs.evolve(stale(L.bad_content()), requests=(1, 2)),),
            State.TAG_COLD: (attrs.evolve(failed, requests=(1, 3)),),
            State.MANIFEST: (hit(), attrs.evolve(failed, requests=(1, 3))),
            State.BLOB_CACHED: (hit(),),
            State.BLOB_COLD: (attrs.evolve(failed, within_s=2 * L.bad_content(), gets=(1, 3)),),
            State.BLOB_DOWNLOAD: (cut(L.breaks()),),
        },
        breaks=True,
    )


def _fail_twice(lane: Lane, state: State) -> None:
    if state is State.BLOB_CACHED:
        lane.on("blob", faults.error_response(503, "UNAVAILABLE"))
        return
    lane.on_once(None, faults.error_response(503, "UNAVAILABLE"), times=2 if state is State.BLOB_DOWNLOAD else 1)


FAILING = Fault(
    "U14",
    "Errors of the server",
    (
        *(_failing(status) for status in (503, 500, 502, 504)),
        attrs.evolve(
            _failing(503),
            name="503 at first",
            strike=_fail_twice,
            stays_stale=False,
            outcomes={
                **_failing(503).outcomes,
                State.BLOB_COLD: (new(2),),
                State.BLOB_DOWNLOAD: (resumed(3),),
            },
        ),
    ),
)

# U18


def _absent(status: int, told: int, *, has_login: bool) -> Trouble:
    no = attrs.evolve(error(told, L.bad_content()), requests=(1, 3))
    return attrs.evolve(
        _answering(status, "DENIED" if status == 403 else "UNKNOWN"),
        name=str(status) if status == 404 else f"403 {'with' if has_login else 'without'} a login",
        prepare=_add_login if has_login else nothing,
        outcomes={
            State.TAG_CACHED: (no,),
            State.TAG_COLD: (no,),
            State.MANIFEST: (hit(), no),
            State.BLOB_CACHED: (hit(),),
            State.BLOB_COLD: (attrs.evolve(no, gets=(1, 1) if status == 404 else (1, 2)),),
            State.BLOB_DOWNLOAD: (cut(L.breaks()),),
        },
        breaks=True,
        recovery_s=1.0,
        reason=REFUSED_LOGIN if status == 403 else "",
    )


ABSENT = Fault(
    "U18",
    "404 and 403: an answer, not an outage",
    (
        _absent(404, 404, has_login=False),
        _absent(403, 403, has_login=True),
        _absent(403, 404, has_login=False),
    ),
)

# U17


def _lose_tokens(lane: Lane, state: State) -> None:
    assert lane.tokens is not None
    assert lane.token_way is not None
    if state is not State.BLOB_DOWNLOAD:  # its body has been granted
        lane.tokens.revoke_all()
    lane.token_way.refuse_connections()


def _lose_service(lane: Lane, _: State) -> None:
    assert lane.token_way is not None
    lane.token_way.refuse_connections()


def _is_service_away(lane: Lane, _: State) -> None:
    seen = lane.look("/token", way=lane.token_way)
    assert seen == "refused", f"a plain client sees {seen!r} at the token service"


_NO_TOKENS = Trouble(
    "token expired",
    prepare=lambda lane, _: lane.add_tokens(),
    strike=_lose_tokens,
    prove=_is_service_away,
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
            strike=_lose_service,
            outcomes={
                State.TAG_CACHED: (hit1(),),
                State.TAG_COLD: (new(),),
                State.MANIFEST: (hit(), new()),
                State.BLOB_CACHED: (hit(),),
                State.BLOB_COLD: (new(),),
                State.BLOB_DOWNLOAD: (resumed(0),),
            },
        ),
    ),
)

ANSWERS = (LOGIN_LOOP, LIMITED, FAILING, NO_TOKENS, ABSENT)
