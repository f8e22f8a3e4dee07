"""What registries and token services do in practice: challenges that differ, tokens that are refused, scopes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import structlog
import trustme

from dockyard.config.settings import Auth, Upstream
from dockyard.errors import BadUpstream, Denied, ManifestUnknown, RegistryError, TooManyRequests, Unavailable
from dockyard.oci.reference import Digest, Tag
from dockyard.upstream.challenges import Authorization, ChallengeResponder, Handshake, Resource
from dockyard.upstream.client import RegistryClient
from dockyard.upstream.errors import UpstreamError
from dockyard.upstream.keychain import ANONYMOUS as NOBODY
from dockyard.upstream.network_zones import NetworkZone
from dockyard.upstream.tokens import CallLimits, TokenRefused
from dockyard.upstream.transport import UpstreamRequest, UpstreamResponse
from dockyard.upstream.urls import Url
from tests.support import faults
from tests.support.fake_auth import FakeScopedTokens, FakeTokenService, bearer_challenge, require_authorization
from tests.support.fake_registry import FakeRegistry, Image, basic
from tests.support.raw_http import Request
from tests.support.upstreams import ANONYMOUS, BASIC, BEARER, DETAILS, LATEST, Ward, certified, methods, only_if

ANN = basic("ann", "s3cret-pass")
REPOSITORIES = ("org/app", "org/bad", "org/two", "one/app", "two/app", "pub/app", "docker-local/test/app")


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    """A fake registry with an image in each repository, and makers of its clients."""
    with Ward(tmp_path) as ward:
        for repository in REPOSITORIES:
            ward.fake_registry.add_image(repository, "latest")
        yield ward


def first_part(repository: str) -> str:
    """The first component of a repository."""
    return repository.partition("/")[0]


def pull(repository: str) -> str:
    """The scope of a repository."""
    return f"repository:{repository}:pull"


# An error about one scope


def is_about_bad(request: Request) -> bool:
    """Whether a token is requested for `org/bad`."""
    return "org%2Fbad" in request.target


@pytest.mark.parametrize(
    ("change", "error"),
    [
        *[(faults.error_response(status), BadUpstream) for status in (400, 402, 404, 405, 409, 410, 418, 422, 451)],
        (faults.html_page(), RegistryError),
        *[
            (faults.replaced(200, body, ("Content-Type", "application/json")), BadUpstream)
            for body in (b"{}", b'{"token":""}', b'{"token":null}', b'{"token":5}', b'{"token":"a b"}')
        ],
        *[
            (faults.replaced(status, faults.HTML, ("Content-Type", "text/html")), BadUpstream)
            for status in (401, 403, 404, 451)
        ],
        (faults.error_response(401), ManifestUnknown),
        (faults.error_response(403), ManifestUnknown),
    ],
)
def test_a_scope_without_a_token_concerns_one_repository(
    ward: Ward, change: faults.Change, error: type[RegistryError]
) -> None:
    """However often it is requested: the registry is up, and the others are pulled from it."""
    tokens = FakeScopedTokens(ward.fake_registry)
    ward.fake_registry.on("token", change, when=is_about_bad)
    registry = ward.registry()
    for number in range(4):
        with pytest.raises(error) as caught:
            registry.head_manifest("org/bad", LATEST)
        assert not caught.value.remembered
        registry.head_manifest(REPOSITORIES[number % 2 * 2], LATEST)
    assert ward.fake_registry.count("manifest", repo="org/bad") == 4
    assert sorted(scopes for _, scopes in tokens.asked()) == [
        *[[pull("org/app")]],
        *[[pull("org/bad")]] * 4,
        *[[pull("org/two")]],
    ]


def test_many_scopes_without_a_token_are_no_outage(ward: Ward) -> None:
    """A client that asks for names that do not exist does not keep others from a good one."""
    FakeScopedTokens(ward.fake_registry, grant=lambda _, scopes: scopes if scopes == [pull("org/two")] else 404)
    registry = ward.registry()
    for number in range(20):
        with pytest.raises(BadUpstream, match=f"status 404 to repository:no/name-{number}:pull"):
            registry.head_manifest(f"no/name-{number}", LATEST)
    registry.head_manifest("org/two", LATEST)


def test_a_login_that_is_rejected_for_one_scope_is_used_for_the_others(ward: Ward) -> None:
    """It was accepted a short time ago. For that scope it is not sent again for a while."""
    tokens = FakeScopedTokens(ward.fake_registry, grant=lambda _, scopes: 401 if pull("org/bad") in scopes else scopes)
    registry = ward.registry(auth=BASIC)
    registry.head_manifest("org/app", LATEST)
    for _ in range(3):
        with pytest.raises(Denied):
            registry.head_manifest("org/bad", LATEST)
    registry.head_manifest("org/two", LATEST)
    assert [scopes for _, scopes in tokens.asked()] == [[pull("org/app")], [pull("org/bad")], [pull("org/two")]]


def test_the_page_of_a_firewall_rejects_no_login(ward: Ward) -> None:
    """403 with a web page comes from in between. 401 is taken as a rejection: a wrong password is not sent again."""
    page = faults.replaced(403, faults.HTML, ("Content-Type", "text/html"))
    tokens = FakeScopedTokens(ward.fake_registry)
    rule = ward.fake_registry.on("token", page)
    registry = ward.registry(auth=BASIC)
    with pytest.raises(BadUpstream, match="firewall"):
        registry.head_manifest("org/app", LATEST)
    ward.fake_registry.remove_rules(rule)
    registry.head_manifest("org/app", LATEST)
    ward.fake_registry.on("token", faults.replaced(401, faults.HTML, ("Content-Type", "text/html")))
    ward.fake_registry.clear_exchanges()
    for _ in range(3):
        with pytest.raises(Denied):
            registry.head_manifest("org/two", LATEST)
    assert len(tokens.asked()) == 1


def test_a_rate_limit_of_the_token_service_spares_valid_tokens(ward: Ward) -> None:
    """It is asked no more until the limit is over; what needs no new token goes on."""
    tokens = FakeScopedTokens(ward.fake_registry)
    registry = ward.registry()
    registry.head_manifest("org/app", LATEST)
    ward.fake_registry.on("token", faults.error_response(429, retry_after="20"))
    for repository in ("org/two", "org/two", "one/app"):
        with pytest.raises(TooManyRequests) as caught:
            registry.head_manifest(repository, LATEST)
        assert 15 < (caught.value.retry_after_s or 0) <= 20
    registry.head_manifest("org/app", LATEST)
    assert len(tokens.asked()) == 2
    assert not registry.is_breaker_open


def test_a_dead_token_service_concerns_who_needs_it(ward: Ward) -> None:
    """A registry may have others, and public repositories."""
    tokens = FakeScopedTokens(
        ward.fake_registry, needed=lambda repo: "" if first_part(repo) in ("pub", "") else pull(repo)
    )
    dead = ward.fake_registry.listen("dead")
    dead.close()
    tokens.challenge = lambda repo, _: bearer_challenge(
        f"{dead.url}/token/dead" if first_part(repo) == "one" else tokens.realm("main"), repo
    )
    registry = ward.registry()
    for repository in ("org/app", "org/two", "pub/app"):
        with pytest.raises(Unavailable, match=r"the token service of up0\.test cannot be reached"):
            registry.head_manifest("one/app", LATEST)
        registry.head_manifest(repository, LATEST)
    assert not registry.is_breaker_open
    assert ward.fake_registry.count("manifest", repo="one/app") == 1


@pytest.mark.parametrize("change", [faults.error_response(500), faults.error_response(503, retry_after="40")])
def test_a_server_error_for_one_scope_concerns_one_repository(ward: Ward, change: faults.Change) -> None:
    """As a server error of the registry for one repository does."""
    FakeScopedTokens(ward.fake_registry)
    ward.fake_registry.on("token", change, when=is_about_bad)
    registry = ward.registry()
    for _ in range(8):
        with pytest.raises(Unavailable):
            registry.head_manifest("org/bad", LATEST)
    registry.head_manifest("org/two", LATEST)
    assert not registry.is_breaker_open


# Tokens that the registry does not take any more


OPERATIONS: dict[str, Callable[[RegistryClient, Image], object]] = {
    "HEAD manifest": lambda registry, _: registry.head_manifest("lib/app", LATEST),
    "GET manifest": lambda registry, image: registry.get_manifest("lib/app", Digest.parse(image.digest)),
    "HEAD blob": lambda registry, image: registry.head_blob("lib/app", Digest.parse(image.config)),
    "GET blob": lambda registry, image: registry.open_blob("lib/app", Digest.parse(image.config)).close(),
}

OTHER_SERVICES = ("401", "403", "404", "500", "useless", "not a URL", "refused")


def to_other_service(tokens: FakeScopedTokens, kind: str) -> Callable[[str, str | None], str]:
    """With a token, the challenge is another one; `grant` of `OTHER_SERVICES` answers there."""
    other = {"not a URL": "not a URL", "refused": "http://127.0.0.1:1/token"}.get(kind, tokens.realm(kind))
    return lambda repo, token: bearer_challenge(tokens.realm("main") if token is None else other, repo)


def grant_of_others(name: str, scopes: list[str]) -> list[str] | int:
    """What the token services of `OTHER_SERVICES` grant."""
    if name == "main":
        return scopes
    return int(name) if name.isdecimal() else ["repository:useless:pull"]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("refusal", [400, 401, 403, *OTHER_SERVICES, "no challenge"])
@pytest.mark.parametrize("auth", [ANONYMOUS, BASIC], ids=["anonymous", "login"])
def test_a_refused_token_is_replaced_at_once(ward: Ward, operation: str, refusal: int | str, auth: Auth) -> None:
    """However the registry refuses it, and whatever token service the refusal names: the client gets no error."""
    image = ward.fake_registry.add_image("lib/app", "latest")
    tokens = FakeScopedTokens(ward.fake_registry, grant=grant_of_others)
    if refusal in OTHER_SERVICES:
        tokens.challenge = to_other_service(tokens, str(refusal))
    if isinstance(refusal, int):
        tokens.refusal = refusal
    registry = ward.registry(auth=auth)
    expired: set[str | None] = set()
    if refusal == "no challenge":
        is_expired = lambda request: request.header("Authorization") in expired  # noqa: E731
        ward.fake_registry.on(None, only_if(is_expired, faults.error_response(401)), repo="lib/app")
    OPERATIONS[operation](registry, image)
    for _ in range(2):
        expired.add(ward.authorizations()[-1])
        tokens.expire()
        ward.fake_registry.clear_exchanges()
        OPERATIONS[operation](registry, image)
        assert ward.fake_registry.count(repo="lib/app") <= 3
        assert [name for name, _ in tokens.asked()] == ["main"]
        sent = ward.authorizations()
        assert sent[0] in expired
        assert not expired.intersection(sent[1:]) - {None}
    ward.fake_registry.clear_exchanges()
    OPERATIONS[operation](registry, image)
    assert ward.fake_registry.count() == 1


def test_a_token_that_is_refused_everywhere_is_dropped_everywhere(ward: Ward) -> None:
    """Services may give out one token for all repositories."""
    ward.fake_registry.add_image("lib/app", "latest")
    every = [pull(repository) for repository in REPOSITORIES]
    tokens = FakeScopedTokens(ward.fake_registry, grant=lambda *_: every)
    registry = ward.registry()
    for repository in ("org/app", "org/two"):
        registry.head_manifest(repository, LATEST)
    tokens.expire()
    registry.head_manifest("org/app", LATEST)
    ward.fake_registry.clear_exchanges()
    registry.head_manifest("org/two", LATEST)
    assert [each.request.kind for each in ward.fake_registry.received()] == ["token", "manifest"]


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_refusal_of_a_new_token_is_believed(ward: Ward, status: int) -> None:
    """A repository that is denied costs few requests, again and again."""
    tokens = FakeScopedTokens(ward.fake_registry, needed=lambda _: "nothing that is granted", refusal=status)
    registry = ward.registry()
    for requests in (2, 2, 2):
        ward.fake_registry.clear_exchanges()
        with pytest.raises((ManifestUnknown, BadUpstream)):
            registry.get_manifest("org/app", LATEST)
        assert ward.fake_registry.count("manifest") <= requests
    assert len(tokens.asked()) <= 1


@pytest.mark.parametrize("status", [400, 403])
@pytest.mark.parametrize("auth", [ANONYMOUS, BASIC], ids=["anonymous", "login"])
def test_a_reference_that_is_denied_does_not_cost_the_token(ward: Ward, status: int, auth: Auth) -> None:
    """Registries block single images, and reject requests that they do not understand."""
    ward.fake_registry.add_image("org/app", "blocked")
    tokens = FakeScopedTokens(ward.fake_registry)
    ward.fake_registry.on("manifest", faults.error_response(status), reference="blocked")
    registry = ward.registry(auth=auth)
    registry.get_manifest("org/app", LATEST)
    for requests in (2, 1, 1):
        ward.fake_registry.clear_exchanges()
        with pytest.raises(RegistryError):
            registry.get_manifest("org/app", Tag("blocked"))
        assert ward.fake_registry.count() == requests
        registry.get_manifest("org/app", LATEST)
        assert tokens.asked() == []


def test_a_registry_without_the_referrers_api_may_respond_with_400(ward: Ward) -> None:
    """The token is good: there are no referrers."""
    tokens = FakeScopedTokens(ward.fake_registry)
    registry = ward.registry()
    image = ward.fake_registry.add_image("lib/app", "latest")
    registry.get_manifest("lib/app", LATEST)
    ward.fake_registry.on("other", faults.error_response(400))
    assert registry.list_referrers("lib/app", Digest.parse(image.digest)) == []
    assert len(tokens.asked()) == 1
    assert ward.fake_registry.count("other") == 2


def test_a_repository_that_became_public_is_pulled_without_a_token(ward: Ward) -> None:
    """The registry does not take tokens for it any more; the challenge is forgotten."""
    tokens = FakeScopedTokens(ward.fake_registry)
    registry = ward.registry()
    registry.head_manifest("org/app", LATEST)
    tokens.needed = lambda repo: "" if repo == "org/app" else pull(repo)
    ward.fake_registry.on(
        "manifest",
        only_if(lambda request: request.header("Authorization") is not None, faults.error_response(401)),
        repo="org/app",
    )
    registry.head_manifest("org/app", LATEST)
    ward.fake_registry.clear_exchanges()
    registry.head_manifest("org/app", LATEST)
    assert ward.authorizations() == [None]


def test_a_head_that_is_refused_with_a_good_token_leads_to_a_get(ward: Ward) -> None:
    """Some registries refuse HEAD of blobs with 401; the token of the HEAD is used for the GET."""
    image = ward.fake_registry.add_image("lib/app", "latest")
    tokens = FakeScopedTokens(ward.fake_registry)
    registry = ward.registry()
    ward.fake_registry.on("blob", faults.challenged(bearer_challenge(tokens.realm("main"), "lib/app")), method="HEAD")
    for _ in range(3):
        assert registry.head_blob("lib/app", Digest.parse(image.config)) > 0
    assert len(tokens.asked()) == 1
    assert methods(ward.fake_registry.received("blob")) == ["HEAD", "HEAD", "GET", "HEAD", "GET", "HEAD", "GET"]


# A challenge holds for one repository


@pytest.mark.parametrize("refusal", [400, 401, 403, 404, 500, "useless"])
@pytest.mark.parametrize("auth", [ANONYMOUS, BASIC], ids=["anonymous", "login"])
def test_each_repository_may_have_its_own_token_service(ward: Ward, refusal: int | str, auth: Auth) -> None:
    """None is asked for the scope of another one, so it does not matter how it would refuse."""

    def grant(name: str, scopes: list[str]) -> list[str] | int:
        if scopes == [pull(f"{name}/app")]:
            return scopes
        return refusal if isinstance(refusal, int) else []

    tokens = FakeScopedTokens(
        ward.fake_registry, grant=grant, needed=lambda repo: "" if first_part(repo) in ("pub", "") else pull(repo)
    )
    tokens.challenge = lambda repo, _: bearer_challenge(tokens.realm(first_part(repo)), repo)
    registry = ward.registry(auth=auth)
    for _ in range(3):
        for repository in ("one/app", "two/app", "pub/app"):
            registry.head_manifest(repository, LATEST)
    assert tokens.asked() == [("one", [pull("one/app")]), ("two", [pull("two/app")])]
    assert ward.fake_registry.count("manifest", repo="pub/app") == 3
    assert ward.fake_registry.count("manifest") == 2 * 4 + 3


@pytest.mark.parametrize("refusal", [400, 401, 403, 404, 500, "refused"])
def test_a_remembered_token_service_that_fails_is_not_the_last_word(ward: Ward, refusal: int | str) -> None:
    """The registry is asked anew, and names the one that works now."""
    moved = False
    tokens = FakeScopedTokens(ward.fake_registry)
    old = ward.fake_registry.listen("old")
    tokens.challenge = lambda repo, _: bearer_challenge(tokens.realm("new") if moved else f"{old.url}/token/old", repo)
    registry = ward.registry()
    registry.head_manifest("org/app", LATEST)
    moved = True
    tokens.grant = lambda name, scopes: scopes if name == "new" else int(refusal)
    tokens.expire()
    registry_requests = ward.fake_registry.count("manifest")
    if refusal == "refused":
        old.close()
    registry.head_manifest("org/app", LATEST)
    assert ward.fake_registry.count("manifest") - registry_requests == 3
    assert not registry.is_breaker_open


def test_few_challenges_are_remembered(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently used one is forgotten, and learned again."""
    monkeypatch.setattr("dockyard.upstream.challenges.MAX_KNOWN_CHALLENGES", 1)
    FakeScopedTokens(ward.fake_registry)
    registry = ward.registry()
    for repository in ("org/app", "org/two", "org/app"):
        registry.head_manifest(repository, LATEST)
    assert ward.authorizations("manifest").count(None) == 3


# Scopes


GRANTS: dict[str, Callable[[list[str], list[str]], list[str] | int]] = {
    "all that it knows": lambda scopes, known: [scope for scope in scopes if scope in known],
    "the first": lambda scopes, known: scopes[:1],
    "the last": lambda scopes, known: scopes[-1:],
    "nothing if one is unknown: 400": lambda scopes, known: scopes if set(scopes) <= set(known) else 400,
    "nothing if one is unknown: 401": lambda scopes, known: scopes if set(scopes) <= set(known) else 401,
    "nothing if one is unknown: 403": lambda scopes, known: scopes if set(scopes) <= set(known) else 403,
    "nothing if one is unknown: 404": lambda scopes, known: scopes if set(scopes) <= set(known) else 404,
    "one at a time: 400": lambda scopes, known: scopes if len(scopes) == 1 else 400,
}


NAMED = {
    "repository:test/app:pull": pull("test/app"),
    "repository:test/app:pull,push": pull("test/app"),
    "repository:test/app:*": pull("test/app"),
    "aws": "aws",
    "repository:x:pull aws": "aws",
}
# These services never grant the second of two scopes.
NAMED_AND_GRANT = [
    (named, grant)
    for named in NAMED
    for grant in GRANTS
    if " " not in named or grant not in ("the first", "one at a time: 400")
]


@pytest.mark.parametrize(("named", "grant"), NAMED_AND_GRANT)
def test_the_scope_that_the_registry_names_is_requested(ward: Ward, named: str, grant: str) -> None:
    """Its own scope first, then both alone: services combine scopes in many ways. What worked is remembered."""
    needed = NAMED[named]
    tokens = FakeScopedTokens(
        ward.fake_registry,
        grant=lambda _, scopes: GRANTS[grant](scopes, [needed, pull("x")]),
        needed=lambda _: needed,
    )
    tokens.challenge = lambda repo, _: f'Bearer realm="{tokens.realm("main")}",service="s",scope="{named}"'
    registry = ward.registry()
    registry.head_manifest("docker-local/test/app", LATEST)
    assert tokens.asked()[0][1][0] == pull("docker-local/test/app")
    assert len(tokens.asked()) <= 3
    assert ward.fake_registry.count("manifest") <= 4
    assert not any("push" in scope or "*" in scope for _, scopes in tokens.asked() for scope in scopes)
    ward.fake_registry.clear_exchanges()
    registry.head_manifest("docker-local/test/app", LATEST)
    assert ward.fake_registry.count() == 1
    tokens.expire()
    registry.head_manifest("docker-local/test/app", LATEST)
    assert ward.fake_registry.count() == 4


@pytest.mark.parametrize("grant", [name for name in GRANTS if name not in ("the last", "one at a time: 400")])
@pytest.mark.parametrize("named", ["repository:user/image:pull", "repository:user/image:pull,push", "placeholder", ""])
def test_a_placeholder_does_no_harm(ward: Ward, grant: str, named: str) -> None:
    """The own scope alone is requested when there is no token for both."""
    tokens = FakeScopedTokens(ward.fake_registry, grant=lambda _, scopes: GRANTS[grant](scopes, [pull("org/app")]))
    tokens.challenge = lambda repo, _: f'Bearer realm="{tokens.realm("main")}",scope="{named}"'
    registry = ward.registry()
    for _ in range(3):
        registry.head_manifest("org/app", LATEST)
    assert len(tokens.asked()) <= 2
    assert ward.fake_registry.count("manifest") == 4


def test_with_a_login_no_other_repository_is_named(ward: Ward) -> None:
    """A registry could otherwise get a token that reads another repository of this account."""
    tokens = FakeScopedTokens(ward.fake_registry)
    tokens.challenge = lambda repo, _: f'Bearer realm="{tokens.realm("main")}",scope="repository:secret/data:pull aws"'
    ward.registry(auth=BASIC).head_manifest("org/app", LATEST)
    assert tokens.asked() == [("main", [pull("org/app")])]


def test_a_scope_that_is_named_with_the_refusal_is_requested(ward: Ward) -> None:
    """With `insufficient_scope` a registry says what is missing."""
    tokens = FakeScopedTokens(ward.fake_registry, needed=lambda _: pull("base/app"))
    tokens.challenge = lambda repo, token: (
        f'Bearer realm="{tokens.realm("main")}"'
        + (f',error="insufficient_scope",scope="{pull("base/app")}"' if token else "")
    )
    ward.registry().head_manifest("org/app", LATEST)
    assert tokens.asked() == [("main", [pull("org/app")]), ("main", [pull("org/app"), pull("base/app")])]


# Several challenges, and odd ones


@pytest.mark.parametrize("realm", ["not a URL", "file:///etc/passwd", "https://tokens.elsewhere.test/token"])
def test_basic_is_used_when_the_token_service_may_not_be(ward: Ward, realm: str) -> None:
    """Of several challenges, the first one that can be satisfied."""
    require_authorization(ward.fake_registry, ANN, f'Bearer realm="{realm}",service="s", Basic realm="x"')
    ward.registry(auth=BASIC).head_manifest("org/app", LATEST)
    assert ward.authorizations() == [None, ANN]


def test_the_second_of_two_token_services_is_used_when_the_first_is_not_allowed(ward: Ward) -> None:
    """As above."""
    service = FakeTokenService(
        ward.fake_registry,
        challenges=lambda realm, repo: ['Bearer realm="gopher://x/"', bearer_challenge(realm, repo)],
    )
    ward.registry(auth=BASIC).head_manifest("org/app", LATEST)
    assert len(service.requests()) == 1


@pytest.mark.parametrize("auth", [BASIC, BEARER])
def test_a_registry_may_respond_with_403_to_a_request_without_a_login(ward: Ward, auth: Auth) -> None:
    """Its challenge is at `/v2/`."""
    header = ANN if auth is BASIC else "Bearer s3cret-bearer"
    require_authorization(ward.fake_registry, header)
    ward.fake_registry.on(
        "manifest", only_if(lambda request: request.header("Authorization") is None, faults.error_response(403))
    )
    ward.registry(auth=auth).head_manifest("org/app", LATEST)
    assert ward.authorizations("manifest")[-1] == header


@pytest.mark.parametrize("schemes", [("Basic", "Bearer"), ("Bearer", "Basic")])
def test_a_registry_may_change_its_scheme(ward: Ward, schemes: tuple[str, str]) -> None:
    """From a login to tokens, or back."""
    service = FakeTokenService(ward.fake_registry, login=ANN)
    rules = list(ward.fake_registry.rules)
    registry = ward.registry(auth=BASIC)
    for scheme in (*schemes, *schemes):
        ward.fake_registry.remove_rules()
        if scheme == "Bearer":
            ward.fake_registry.rules.extend(rules)
        else:
            require_authorization(ward.fake_registry, ANN)
        service.revoke_all()
        for _ in range(2):
            registry.head_manifest("org/app", LATEST)


# A token service without TLS


@pytest.mark.parametrize(("auth", "login"), [(ANONYMOUS, None), (BASIC, ANN)], ids=["anonymous", "login"])
def test_a_realm_with_http_on_the_same_port_is_reached_with_https(
    ward: Ward, tmp_path: Path, auth: Auth, login: str | None
) -> None:
    """A registry behind a proxy that terminates TLS does not know that it has TLS."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    listener = ward.fake_registry.listen("tls", tls=certified(authority, "127.0.0.1"))
    service = FakeTokenService(ward.fake_registry, realm=f"http://{listener.authority}/token", login=login)
    ward.registry(at=listener.url, auth=auth, ca_file=str(tmp_path / "ca.pem")).head_manifest("org/app", LATEST)
    assert [each.request.listener for each in service.requests()] == ["tls"]


@pytest.mark.parametrize("auth", [ANONYMOUS, BASIC], ids=["anonymous", "login"])
@pytest.mark.parametrize("realm", ["http://127.0.0.1:{plain}/token", "http://127.0.0.2:{tls}/token"])
def test_a_realm_with_http_elsewhere_is_not_used(ward: Ward, tmp_path: Path, auth: Auth, realm: str) -> None:
    """On another port or host nothing is sent, with or without TLS."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    listener = ward.fake_registry.listen("tls", tls=certified(authority, "127.0.0.1"))
    plain = ward.fake_registry.listen("plain")
    FakeTokenService(ward.fake_registry, realm=realm.format(plain=plain.port, tls=listener.port))
    with pytest.raises(BadUpstream, match="its token service does not"):
        ward.registry(at=listener.url, auth=auth, ca_file=str(tmp_path / "ca.pem")).head_manifest("org/app", LATEST)
    assert ward.fake_registry.count("token") == 0
    assert plain.connections == 0


class Recorder:
    """A sender that records the URLs of requests and has no responses."""

    def __init__(self) -> None:
        self.urls: list[str] = []

    def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """Record the request."""
        self.urls.append(request.url.text)
        raise TokenRefused("x", "was not asked", DETAILS)


@attrs.define
class Refusal:
    """A 401 response with a challenge."""

    url: Url
    realm: str
    status: int = 401
    zone: NetworkZone = NetworkZone.PUBLIC

    def header(self, name: str) -> str:
        """The only header is the challenge."""
        return f'Bearer realm="{self.realm}",service="s"'

    def header_values(self, name: str) -> list[str]:
        """As above."""
        return [self.header(name)]


@pytest.mark.parametrize(
    ("registry", "realm", "expected"),
    [
        ("https://reg.test", "http://reg.test/token", "https://reg.test/token"),
        ("https://reg.test", "http://REG.test:80/token?a=b", "https://reg.test/token?a=b"),
        ("https://reg.test", "http://reg.test:443/token", "https://reg.test/token"),
        ("https://reg.test:8443", "http://reg.test:8443/token", "https://reg.test:8443/token"),
        ("https://[2001:db8::1]:8443", "http://[2001:db8::1]:8443/t", "https://[2001:db8::1]:8443/t"),
        ("https://reg.test", "https://reg.test:444/token", "https://reg.test:444/token"),
        ("http://reg.test", "http://reg.test/token", "http://reg.test/token"),
        ("http://reg.test", "https://reg.test/token", "https://reg.test/token"),
        ("https://reg.test:8443", "http://reg.test/token", None),
        ("https://reg.test", "http://reg.test:8080/token", None),
        ("https://reg.test", "http://auth.reg.test/token", None),
        ("https://reg.test", "http://reg.test.evil.test/token", None),
        ("https://reg.test", "http://reg.test@evil.test/token", None),
        ("https://reg.test", "ftp://reg.test/token", None),
        ("https://reg.test", "//reg.test/token", None),
        ("https://reg.test", "/token", None),
    ],
)
def test_where_a_token_is_requested(registry: str, realm: str, expected: str | None) -> None:
    """Never without TLS for a registry with TLS."""
    sender = Recorder()
    responder = ChallengeResponder(Upstream("up.test", registry, ANONYMOUS), sender)
    handshake = Handshake(Resource(responder.origin, "org/app"), "GET", CallLimits(None))
    response: Any = Refusal(Url(responder.origin, "/v2/"), realm)
    with pytest.raises(UpstreamError):
        responder.answer(handshake, Authorization(NOBODY), response, NOBODY)
    assert [url.partition("service=")[0][:-1] for url in sender.urls] == ([expected] if expected else [])


# Redirects to other hosts


@pytest.fixture
def node(ward: Ward) -> str:
    """Another host, where the registry redirects all requests for manifests and blobs."""
    host = ward.fake_registry.listen("node", "127.0.0.2")
    for kind in ("manifest", "blob"):
        ward.fake_registry.on(
            kind, faults.redirected(lambda request: f"{host.url}{request.target}"), listener="registry"
        )
    return host.authority


def to_node(fake_registry: FakeRegistry) -> list[str | None]:
    """The Authorization headers that reached the other host."""
    return [each.request.header("Authorization") for each in fake_registry.received(listener="node")]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("scheme", ["Basic", "Bearer"])
def test_a_login_is_not_sent_to_another_host(ward: Ward, node: str, operation: str, scheme: str) -> None:
    """The error says what to set and promises nothing; the log has the host."""
    image = ward.fake_registry.add_image("lib/app", "latest")
    challenge = bearer_challenge(f"http://{node}/token", "lib/app") if scheme == "Bearer" else 'Basic realm="x"'
    for kind in ("manifest", "blob", "token"):
        ward.fake_registry.on(kind, faults.challenged(challenge), listener="node")
    registry = ward.registry(auth=BASIC)
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            with pytest.raises(BadUpstream, match="trusted_hosts") as caught:
                OPERATIONS[operation](registry, image)
            assert caught.value.retry_after_s is None
            assert not caught.value.remembered
            assert "127.0.0" not in caught.value.message
    assert set(to_node(ward.fake_registry)) == {None}
    assert [(each["log_level"], each["host"]) for each in logs] == [("warning", node)]
    assert not registry.is_breaker_open


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("auth", [ANONYMOUS, BASIC], ids=["anonymous", "login"])
def test_another_registry_may_refuse_without_a_challenge(ward: Ward, node: str, status: int, auth: Auth) -> None:
    """Its path shows that it is no signed URL, which would be requested anew: the same error."""
    image = ward.fake_registry.add_image("lib/app", "latest")
    for kind in ("manifest", "blob"):
        ward.fake_registry.on(kind, faults.error_response(status, "DENIED"), listener="node")
    registry = ward.registry(auth=auth)
    for operation in OPERATIONS.values():
        with pytest.raises(BadUpstream, match="trusted_hosts") as caught:
            operation(registry, image)
        assert caught.value.retry_after_s is None


def test_a_trusted_host_may_name_the_token_service_of_the_registry(ward: Ward, node: str) -> None:
    """A node of the registry has none of its own."""
    ward.fake_registry.add_image("lib/app", "latest")
    tokens = FakeScopedTokens(ward.fake_registry, listener="node")
    tokens.challenge = lambda repo, _: bearer_challenge(f"{ward.fake_registry.url}/token/main", repo)
    ward.fake_registry.on("token", only_if(lambda r: r.header("Authorization") != ANN, faults.error_response(401)))
    ward.registry(auth=BASIC, trusted_hosts=(node,)).head_manifest("lib/app", LATEST)
    assert [each.request.listener for each in ward.fake_registry.received("token")] == ["registry"]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("scheme", ["Basic", "Bearer"])
def test_a_trusted_host_gets_the_login_when_it_asks_for_it(ward: Ward, node: str, operation: str, scheme: str) -> None:
    """Not before."""
    image = ward.fake_registry.add_image("lib/app", "latest")
    if scheme == "Basic":
        guard = only_if(lambda request: request.header("Authorization") != ANN, faults.challenged('Basic realm="x"'))
        for kind in ("manifest", "blob"):
            ward.fake_registry.on(kind, guard, listener="node")
    else:
        FakeScopedTokens(ward.fake_registry, listener="node")
        ward.fake_registry.on("token", only_if(lambda r: r.header("Authorization") != ANN, faults.error_response(401)))
    registry = ward.registry(auth=BASIC, trusted_hosts=(node,))
    OPERATIONS[operation](registry, image)
    first, *_ = to_node(ward.fake_registry)
    assert first is None
    ward.fake_registry.clear_exchanges()
    OPERATIONS[operation](registry, image)
    assert len(to_node(ward.fake_registry)) == 1


def test_a_trusted_host_that_wants_no_login_gets_none(ward: Ward, node: str) -> None:
    """`trusted_hosts` also lists storage in a private network."""
    registry = ward.registry(auth=BASIC, trusted_hosts=(node,))
    registry.head_manifest("org/app", LATEST)
    assert to_node(ward.fake_registry) == [None]


def test_a_trusted_host_that_rejects_the_login_does_not_get_it_again(ward: Ward, node: str) -> None:
    """For a while."""
    ward.fake_registry.on("manifest", faults.challenged('Basic realm="x"'), listener="node")
    registry = ward.registry(auth=BASIC, trusted_hosts=(node,))
    for _ in range(3):
        with pytest.raises(Denied):
            registry.get_manifest("org/app", LATEST)
    assert to_node(ward.fake_registry).count(ANN) == 1


@pytest.mark.parametrize(
    "named", ["repository:user/image:pull", "repository:org/app:pull", "registry:catalog:*", "placeholder", ""]
)
@pytest.mark.parametrize("grant", ["all that it knows", "nothing if one is unknown: 403"])
def test_the_repository_of_a_redirect_is_in_its_path(ward: Ward, named: str, grant: str) -> None:
    """Whatever the other registry names. Its challenge and token are remembered: later pulls cost one request there."""
    backend = ward.fake_registry.listen("node", "127.0.0.2")
    for kind in ("manifest", "blob"):
        ward.fake_registry.on(
            kind,
            faults.redirected(lambda request: f"{backend.url}{request.target.replace('/lib/', '/images/')}"),
            listener="registry",
        )
    image = ward.fake_registry.add_image("images/app", "latest")
    tokens = FakeScopedTokens(
        ward.fake_registry, listener="node", grant=lambda _, scopes: GRANTS[grant](scopes, [pull("images/app")])
    )
    tokens.challenge = lambda repo, _: f'Bearer realm="{tokens.realm("main")}",service="s",scope="{named}"'
    registry = ward.registry(auth=BASIC)
    registry.head_manifest("lib/app", LATEST)
    made = len(tokens.asked())
    assert made <= 2
    for _ in range(3):
        ward.fake_registry.clear_exchanges()
        for operation in OPERATIONS.values():
            operation(registry, image)
        assert len(to_node(ward.fake_registry)) == len(OPERATIONS)
        assert tokens.asked() == []
    tokens.expire()
    registry.head_manifest("lib/app", LATEST)
    assert len(tokens.asked()) == 1
    assert ANN not in ward.authorizations()
