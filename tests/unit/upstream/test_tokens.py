"""Tokens: which are requested, from which service, how often, and how responses are interpreted."""

import base64
import itertools
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import attrs
import pytest

from dockyard.config.settings import Auth
from dockyard.errors import BadUpstream, Denied, ManifestUnknown, RegistryError, TooManyRequests, Unavailable
from dockyard.oci.reference import Digest
from dockyard.upstream.errors import AuthenticationFailed, Cause, UpstreamError, server_error
from dockyard.upstream.keychain import ANONYMOUS as NOBODY
from dockyard.upstream.keychain import Credential
from dockyard.upstream.network_zones import NetworkZone
from dockyard.upstream.tokens import CallLimits, TokenEndpoint, TokenProvider
from dockyard.upstream.transport import UpstreamRequest, UpstreamResponse
from dockyard.upstream.urls import parse_http_url
from tests.support import faults
from tests.support.bodies import Endless
from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.fake_auth import FakeTokenService, bearer_challenge
from tests.support.fake_registry import Change, basic
from tests.support.upstreams import ANONYMOUS, BASIC, DETAILS, LATEST, Ward, error_text, methods, only_if, together

ANN = basic("ann", "s3cret-pass")


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    """Give a fake registry with an image, and what asks it."""
    with Ward(tmp_path) as ward:
        ward.fake_registry.add_image("lib/app", "latest")
        ward.fake_registry.add_image("lib/other", "latest")
        yield ward


def json_answer(document: object, status: int = 200) -> Change:
    """A response of a token service."""
    return faults.replaced(status, json.dumps(document).encode(), ("Content-Type", "application/json"))


def test_a_warm_check_is_exactly_one_request(ward: Ward) -> None:
    """The challenge and the token are remembered; the first check costs one refusal and one token."""
    service = FakeTokenService(ward.fake_registry)
    registry = ward.registry()
    registry.head_manifest("lib/app", LATEST)
    assert [each.request.kind for each in ward.fake_registry.received()] == ["manifest", "token", "manifest"]
    ward.fake_registry.clear_exchanges()
    for _ in range(10):
        registry.head_manifest("lib/app", LATEST)
    assert methods(ward.fake_registry.received()) == ["HEAD"] * 10
    assert service.requests() == []


def test_another_repository_is_asked_for_its_own_challenge(ward: Ward) -> None:
    """It may have another token service, or need no token at all."""
    service = FakeTokenService(ward.fake_registry)
    registry = ward.registry()
    registry.head_manifest("lib/app", LATEST)
    ward.fake_registry.clear_exchanges()
    registry.head_manifest("lib/other", LATEST)
    assert [each.request.kind for each in ward.fake_registry.received()] == ["manifest", "token", "manifest"]
    assert service.scopes() == [["repository:lib/other:pull"]]


@pytest.mark.parametrize(
    ("challenges", "spell"),
    [
        (
            lambda realm, repo: [f'Bearer realm="{realm}",service="s",scope="repository:{repo}:pull,push"'],
            lambda token: {"token": token},
        ),
        (
            lambda realm, repo: [f'Basic realm="x, y", BEARER Realm="{realm}" , Service=s'],
            lambda token: {"access_token": token, "expires_in": 5},
        ),
        (
            lambda realm, repo: ['Basic realm="x"', f'bearer service="s",realm="{realm}",scope="registry:catalog:*"'],
            lambda token: {"token": token, "access_token": token, "issued_at": "2001-01-01T00:00:00Z"},
        ),
        (
            lambda realm, repo: [f'Bearer realm="{realm}",service="s",error="insufficient_scope"'],
            lambda token: {"token": token, "expires_in": "300"},
        ),
        (lambda realm, repo: [f'Bearer realm="{realm}",service="s"'], lambda token: {"token": token, "expires_in": -1}),
        (
            lambda realm, repo: [f'Bearer realm="{realm}",service="s"'],
            lambda token: {"token": token, "expires_in": 1e99},
        ),
    ],
)
def test_a_hundred_checks_cost_one_token(
    ward: Ward,
    challenges: Callable[[str, str], list[str]],
    spell: Callable[[str], Mapping[str, object]],
) -> None:
    """In every spelling of the challenge and the token; the scope is only pull."""
    service = FakeTokenService(ward.fake_registry, challenges=challenges, spell=spell)
    registry = ward.registry()
    for _ in range(100):
        registry.head_manifest("lib/app", LATEST)
    assert service.scopes() == [["repository:lib/app:pull"]]
    assert service.requests()[0].request.query["service"] == "s"
    assert service.requests()[0].request.header("Authorization") is None


def test_a_pull_scope_of_the_challenge_is_requested_too(ward: Ward) -> None:
    """Beside our own, which comes first."""
    scope = "repository(plugin):lib/app:pull"
    service = FakeTokenService(
        ward.fake_registry, challenges=lambda realm, repo: [f'Bearer realm="{realm}",scope="{scope}"']
    )
    ward.registry().head_manifest("lib/app", LATEST)
    assert service.scopes() == [["repository:lib/app:pull", scope]]


def test_fifty_waiting_requests_share_one_token(ward: Ward) -> None:
    """At the start, and when the token is taken back."""
    service = FakeTokenService(ward.fake_registry)
    registry = ward.registry()
    registry.head_manifest("lib/other", LATEST)
    for _ in range(2):
        ward.fake_registry.clear_exchanges()
        together(50, lambda: registry.get_manifest("lib/app", LATEST))
        assert len(service.requests()) == 1
        service.revoke_all()


def test_a_token_that_is_refused_is_replaced_once(ward: Ward) -> None:
    """Without an error for any caller."""
    service = FakeTokenService(ward.fake_registry)
    registry = ward.registry()
    registry.head_manifest("lib/app", LATEST)
    service.revoke_all()
    ward.fake_registry.clear_exchanges()
    registry.head_manifest("lib/app", LATEST)
    assert [each.request.kind for each in ward.fake_registry.received()] == ["manifest", "token", "manifest"]


@pytest.mark.parametrize(("auth", "error"), [(ANONYMOUS, ManifestUnknown), (BASIC, Denied)])
def test_a_registry_that_takes_no_token_is_soon_left_alone(ward: Ward, auth: Auth, error: type[RegistryError]) -> None:
    """At most two requests and two tokens, and one more for a GET where a HEAD was refused."""
    realm = f"{ward.fake_registry.url}/token"
    ward.fake_registry.on("manifest", faults.challenged(bearer_challenge(realm, "lib/app")))
    registry = ward.registry(auth=auth)
    for operation, requests in ((registry.get_manifest, 2), (registry.head_manifest, 3)):
        for repository in ("lib/app", "lib/app", "lib/other"):
            ward.fake_registry.clear_exchanges()
            with pytest.raises(error):
                operation(repository, LATEST)
            assert 1 <= ward.fake_registry.count("manifest") <= requests
            assert ward.fake_registry.count("token") <= 2
            assert ward.fake_registry.count() <= 4


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (faults.error_response(500), Unavailable),
        (faults.error_response(503), Unavailable),
        (faults.error_response(429, retry_after="7"), TooManyRequests),
        (faults.html_page(), Unavailable),
        (faults.replaced(200, b""), Unavailable),
        (json_answer([]), Unavailable),
        (faults.replaced(200, b"[" * 60_000), Unavailable),
        (faults.replaced(200, b'{"expires_in":' + b"9" * 60_000 + b"}"), Unavailable),
        (faults.replaced(200, b'{"token":"' + b"a" * 70_000 + b'"}'), Unavailable),
        (faults.replaced(200, Endless(b" " * 65536)), Unavailable),
        (faults.error_response(401), ManifestUnknown),
        (faults.error_response(403), ManifestUnknown),
    ],
)
def test_a_token_service_that_fails_is_an_outage(ward: Ward, change: Change, error: type[RegistryError]) -> None:
    """A rejection is a valid response; the registry gets one request."""
    FakeTokenService(ward.fake_registry)
    ward.fake_registry.on("token", change)
    with pytest.raises(error) as caught:
        ward.registry().head_manifest("lib/app", LATEST)
    assert type(caught.value) is error
    assert ward.fake_registry.count("manifest") == 1
    assert ward.fake_registry.count("token") == 1
    assert ward.fake_registry.sent_bytes("token") < 20 * 2**20


def test_a_truncated_token_is_requested_once_more(ward: Ward) -> None:
    """A single reset is no outage; two are."""
    service = FakeTokenService(ward.fake_registry)
    rule = ward.fake_registry.on("token", faults.cut(5, "rst"), times=1)
    registry = ward.registry()
    registry.head_manifest("lib/app", LATEST)
    assert len(service.requests()) == 2
    rule.times = None
    with pytest.raises(Unavailable):
        registry.head_manifest("lib/other", LATEST)
    assert len(service.requests()) == 4


def test_a_dead_token_service_is_remembered(ward: Ward) -> None:
    """Like a missing response: the next call is not sent."""
    tokens = ward.fake_registry.listen("tokens")
    FakeTokenService(ward.fake_registry, realm=f"{tokens.url}/token")
    tokens.close()
    registry = ward.registry()
    for remembered in (False, True, True):
        with pytest.raises(Unavailable, match="token service") as caught:
            registry.head_manifest("lib/app", LATEST)
        assert caught.value.remembered is remembered
    assert ward.fake_registry.count("manifest") == 1


def test_a_bad_login_is_not_repeated(ward: Ward) -> None:
    """For a while, so that no account is locked."""
    service = FakeTokenService(ward.fake_registry, login=basic("bob", "other"))
    registry = ward.registry(auth=BASIC)
    for remembered in (False, True, True):
        with pytest.raises(Denied) as caught:
            registry.head_manifest("lib/app", LATEST)
        assert caught.value.remembered is remembered
        assert "s3cret" not in error_text(caught.value)
    assert len(service.requests()) == 1


def test_an_empty_token_is_a_bad_login(ward: Ward) -> None:
    """So one service says that a password is wrong."""
    FakeTokenService(ward.fake_registry, spell=lambda token: {"token": ""})
    with pytest.raises(Denied):
        ward.registry(auth=BASIC).head_manifest("lib/app", LATEST)


def test_a_login_makes_the_token(ward: Ward) -> None:
    """By GET with Basic; the registry sees the token only."""
    service = FakeTokenService(ward.fake_registry, login=ANN)
    ward.registry(auth=BASIC).head_manifest("lib/app", LATEST)
    assert [each.request.header("Authorization") for each in service.requests()] == [ANN]
    first, second = ward.authorizations("manifest")
    assert first is None
    assert (second or "").startswith("Bearer ")


@pytest.mark.parametrize(
    "realm",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://tokens.test/token",
        "file:///etc/passwd",
        "http://u:p@127.0.0.1/token",
        "http://127.0.0.1:1\\@evil.test/",
        "not a URL",
    ],
)
def test_credentials_go_to_no_strange_realm(ward: Ward, realm: str) -> None:
    """Another site, a metadata service, a file (CVE-2026-33540)."""
    ward.fake_registry.on("manifest", faults.challenged(f'Bearer realm="{realm}",service="s"'))
    with pytest.raises(BadUpstream):
        ward.registry(auth=BASIC).head_manifest("lib/app", LATEST)
    assert ward.fake_registry.count() == 1


def test_a_realm_of_another_site_may_be_listed(ward: Ward) -> None:
    """In `trusted_hosts`."""
    tokens = ward.fake_registry.listen("tokens", "127.0.0.2")
    service = FakeTokenService(ward.fake_registry, realm=f"{tokens.url}/token", login=ANN)
    with pytest.raises(BadUpstream, match="trusted_hosts"):
        ward.registry(auth=BASIC).head_manifest("lib/app", LATEST)
    assert service.requests() == []
    ward.registry(auth=BASIC, trusted_hosts=(tokens.authority,)).head_manifest("lib/app", LATEST)
    assert [each.request.listener for each in service.requests()] == ["tokens"]


def test_a_token_service_that_moved_is_found(ward: Ward) -> None:
    """When what was learned from the registry does not work any more, it is asked anew before there is an error."""
    image = ward.fake_registry.add_image("lib/app", "latest")
    old = ward.fake_registry.listen("old")
    FakeTokenService(ward.fake_registry, realm=f"{old.url}/token")
    registry = ward.registry()
    registry.head_manifest("lib/app", LATEST)
    ward.fake_registry.remove_rules()
    service = FakeTokenService(ward.fake_registry)
    old.close()
    ward.fake_registry.clear_exchanges()
    registry.open_blob("lib/app", Digest.parse(image.config)).close()
    assert ward.fake_registry.count("blob") == 3
    assert len(service.requests()) == 1


def test_a_realm_that_was_wrong_for_once_is_forgotten(ward: Ward) -> None:
    """An invalid response in between is not remembered."""
    rule = ward.fake_registry.on("manifest", faults.challenged('Bearer realm="http://169.254.169.254/",service="s"'))
    registry = ward.registry()
    with pytest.raises(BadUpstream):
        registry.head_manifest("lib/app", LATEST)
    ward.fake_registry.remove_rules(rule)
    registry.head_manifest("lib/app", LATEST)


def test_a_redirect_of_the_token_service_gets_no_credentials(ward: Ward) -> None:
    """Once it is another fake registry."""
    other = ward.fake_registry.listen("other")
    FakeTokenService(ward.fake_registry, login=ANN)
    ward.fake_registry.on("token", faults.redirected(f"{other.url}/token/moved"), listener="registry")
    with pytest.raises(Denied):
        ward.registry(auth=BASIC).head_manifest("lib/app", LATEST)
    assert ward.authorizations("token") == [ANN, None]


def test_two_upstreams_on_one_host_do_not_share_tokens(ward: Ward) -> None:
    """Each has its own credentials."""
    service = FakeTokenService(ward.fake_registry)
    ward.registry(auth=BASIC).head_manifest("lib/app", LATEST)
    ward.registry().head_manifest("lib/app", LATEST)
    assert [each.request.header("Authorization") for each in service.requests()] == [ANN, None]


# With a clock of our own


class Mint:
    """A token service in a function: counts, and does what the test wants."""

    def __init__(self) -> None:
        self.requests: list[UpstreamRequest] = []
        self.life: object = 300
        self.value: str | None = None
        self.fault: UpstreamError | None = None
        self.post_status = 200
        self.wait = threading.Event()
        self.wait.set()

    def send(self, request: UpstreamRequest) -> UpstreamResponse:
        self.requests.append(request)
        self.wait.wait(EVENT_TIMEOUT_S)
        if self.fault is not None:
            raise self.fault
        return Canned(  # type: ignore[return-value]
            self.post_status if request.method == "POST" else 200,
            json.dumps({"token": self.value or f"token-{len(self.requests)}", "expires_in": self.life}).encode(),
        )


@attrs.define
class Canned:
    status: int
    body: bytes

    def header(self, name: str) -> None:
        return None

    def read(self, max_bytes: int) -> bytes:
        return self.body

    def finish(self) -> None:
        pass


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


SERVICE = TokenEndpoint(parse_http_url("https://auth.test/token?a=b"), "s", ("repository:a:pull",), NetworkZone.PUBLIC)


@pytest.fixture
def clock() -> Clock:
    """Give a clock that stands still."""
    return Clock()


@pytest.fixture
def service() -> Mint:
    """Give a token service."""
    return Mint()


@pytest.fixture
def tokens(service: Mint, clock: Clock) -> TokenProvider:
    """Give the tokens of an upstream."""
    return TokenProvider("up.test", service, clock)


def get(tokens: TokenProvider, credential: Credential = NOBODY) -> str:
    """Ask for a token, in a call of its own."""
    return tokens.get(SERVICE, credential, CallLimits(None))


@pytest.mark.parametrize(
    ("life", "renewed_after_s"),
    [
        (300, 200),
        (3600, 2400),
        (60, 40),
        (45, 40),
        (5, 40),
        (None, 40),
        (True, 40),
        (10**12, 2400),
        (-1, 40),
        ("9", 40),
    ],
)
def test_a_token_is_kept_for_two_thirds_of_its_life(
    tokens: TokenProvider, service: Mint, clock: Clock, life: object, renewed_after_s: float
) -> None:
    """A life is within a minute and an hour, whatever the service says."""
    service.life = life
    assert get(tokens) == "token-1"
    clock.now += renewed_after_s - 1
    assert get(tokens) == "token-1"
    clock.now += 2
    assert get(tokens) == "token-2"


def test_a_good_token_outlives_its_service(tokens: TokenProvider, service: Mint, clock: Clock) -> None:
    """While renewal fails, the old token is used until it expires, and the service gets few requests."""
    get(tokens)
    service.fault = server_error("x", 500, DETAILS)
    clock.now += 250
    assert [get(tokens) for _ in range(5)] == ["token-1"] * 5
    assert len(service.requests) == 2
    clock.now += 11
    assert get(tokens) == "token-1"
    assert len(service.requests) == 3
    clock.now += 60
    with pytest.raises(UpstreamError) as caught:
        get(tokens)
    assert caught.value.cause is not Cause.NOT_COUNTED


def test_while_one_renews_the_others_use_the_old_token(tokens: TokenProvider, service: Mint, clock: Clock) -> None:
    """Nobody waits for a renewal that is not urgent."""
    get(tokens)
    clock.now += 250
    service.wait.clear()
    renewal = threading.Thread(target=get, args=(tokens,))
    renewal.start()
    while len(service.requests) < 2:
        threading.Event().wait(0.001)
    assert get(tokens) == "token-1"
    service.wait.set()
    renewal.join(EVENT_TIMEOUT_S)
    assert get(tokens) == "token-2"


def test_the_refused_token_is_not_given_again(tokens: TokenProvider, service: Mint) -> None:
    """A caller whose older token was rejected gets the current one, wherever the token was used."""
    other = attrs.evolve(SERVICE, scopes=("repository:b:pull",))
    service.value = "token-of-all"
    limits = CallLimits(None)
    assert get(tokens) == tokens.get(other, NOBODY, limits) == "token-of-all"
    service.value = None
    tokens.drop("token-of-all")
    assert get(tokens) == "token-3"
    assert tokens.get(other, NOBODY, limits) == "token-4"
    tokens.drop("token-of-all")
    assert get(tokens) == "token-3"
    assert limits.new_tokens == {"token-of-all", "token-4"}


def test_a_failed_exchange_fails_for_all_who_wait(
    tokens: TokenProvider, service: Mint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the next call tries again."""
    service.fault = server_error("x", 500, DETAILS)
    service.wait.clear()
    wait, waiting = tokens._wait, itertools.count(1)

    def respond_when_nine_wait(*args: Any) -> str:
        if next(waiting) == 9:
            service.wait.set()
        return wait(*args)

    monkeypatch.setattr(tokens, "_wait", respond_when_nine_wait)

    def ask() -> bool:
        with pytest.raises(UpstreamError):
            get(tokens)
        return True

    assert all(together(10, ask))
    assert len(service.requests) <= 2
    service.fault = None
    assert get(tokens).startswith("token-")


def test_an_identity_token_is_posted(tokens: TokenProvider, service: Mint) -> None:
    """As a refresh token, with our name, in a form."""
    get(tokens, Credential("<token>", "", "s3cret-refresh"))
    (request,) = service.requests
    assert request.method == "POST"
    assert request.url.text == "https://auth.test/token?a=b"
    assert parse_qs((request.body or b"").decode()) == {
        "grant_type": ["refresh_token"],
        "service": ["s"],
        "client_id": ["dockyard"],
        "scope": ["repository:a:pull"],
        "refresh_token": ["s3cret-refresh"],
    }
    assert "s3cret" not in repr(request)


@pytest.mark.parametrize("status", [404, 405])
def test_a_service_without_post_gets_get_requests(tokens: TokenProvider, service: Mint, status: int) -> None:
    """From then on at once; the query of the realm stays."""
    service.post_status = status
    credential = Credential("user", "", "s3cret-refresh")
    get(tokens, credential)
    tokens.drop("token-2")
    get(tokens, credential)
    assert [request.method for request in service.requests] == ["POST", "GET", "GET"]
    last = service.requests[-1]
    assert last.headers["Authorization"] == "Basic " + base64.b64encode(b"user:s3cret-refresh").decode()
    assert last.url.target == "/token?a=b&service=s&scope=repository%3Aa%3Apull"
    assert "s3cret" not in repr(last)


def test_one_call_makes_three_token_requests_at_most(tokens: TokenProvider, service: Mint) -> None:
    """For two services, or for three sets of scopes. Then it is over."""
    budget = CallLimits(None)
    for number in range(1, 4):
        tokens.get(SERVICE, NOBODY, budget)
        tokens.drop(f"token-{number}")
    with pytest.raises(AuthenticationFailed):
        tokens.get(SERVICE, NOBODY, budget)
    assert len(service.requests) == 3


def test_a_challenge_sent_only_by_the_base_path_is_requested(ward: Ward) -> None:
    """Some registries show it at `/v2/` only."""
    service = FakeTokenService(ward.fake_registry)
    ward.fake_registry.on("manifest", only_if(lambda r: not r.header("Authorization"), faults.error_response(401)))
    registry = ward.registry()
    registry.head_manifest("lib/app", LATEST)
    registry.head_manifest("lib/other", LATEST)
    assert ward.fake_registry.count("ping") == 1
    assert len(service.requests()) == 2
