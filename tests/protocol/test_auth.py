"""Authentication at the upstream: challenges, tokens, realms, scopes, and what happens when a login fails."""

import datetime as dt
from collections.abc import Callable, Mapping

import pytest

from tests.support import faults
from tests.support.busy_machine import is_within
from tests.support.deployment import Deployment, eventually, upstream
from tests.support.fake_auth import FakeScopedTokens, FakeTokenService, bearer_challenge, require_authorization
from tests.support.fake_registry import Change, FakeRegistry, basic
from tests.support.raw_http import Request, ScriptedResponse

USER, PASSWORD = "canary-user", "canary-password-9f1c"

CHALLENGES: dict[str, Callable[[str, str], list[str]]] = {
    "plain": lambda realm, repo: [bearer_challenge(realm, repo)],
    "quoted commas": lambda realm, repo: [
        f'Bearer realm="{realm}",service="a, b",scope="repository:{repo}:pull,push",error="invalid_token"'
    ],
    "two in one header": lambda realm, repo: [f'Basic realm="a \\"b\\", c", {bearer_challenge(realm, repo)}'],
    "two headers": lambda realm, repo: ['Basic realm="x"', bearer_challenge(realm, repo)],
    "upper case": lambda realm, repo: [f'BEARER REALM="{realm}", SERVICE="s" , SCOPE="repository:{repo}:pull"'],
    "without scope": lambda realm, repo: [f'Bearer realm="{realm}",service=unquoted'],
    "fifty schemes": lambda realm, repo: [
        ", ".join([f'Odd{n} a="b,c"' for n in range(50)] + [bearer_challenge(realm, repo)])
    ],
}


def _hours_off(hours: int) -> str:
    return (dt.datetime.now(dt.UTC) + dt.timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ")


SPELLINGS: dict[str, Callable[[str], Mapping[str, object]]] = {
    "access_token only": lambda token: {"access_token": token, "expires_in": 300},
    "both": lambda token: {"token": token, "access_token": token, "expires_in": 300},
    "no expires_in": lambda token: {"token": token},
    "expires_in 5": lambda token: {"token": token, "expires_in": 5},
    "expires_in 0": lambda token: {"token": token, "expires_in": 0},
    "an hour ago": lambda token: {"token": token, "expires_in": 300, "issued_at": _hours_off(-1)},
    "in an hour": lambda token: {"token": token, "expires_in": 300, "issued_at": _hours_off(1)},
}


def _assert_two_tokens_at_most(deployment: Deployment, service: FakeTokenService, tens: int = 1) -> None:
    deployment.fake_registry.add_image("library/app", "v1")
    for _ in range(tens):
        responses = deployment.get_concurrently(["/v2/up.test/library/app/manifests/v1"] * 10)
        assert {response.status for response in responses} == {200}
    assert 1 <= len(service.requests()) <= 2
    assert set(map(tuple, service.scopes())) == {("repository:library/app:pull",)}


@pytest.mark.parametrize("shape", CHALLENGES)
def test_challenges_of_every_shape(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, shape: str
) -> None:
    """However the challenge is written, one token is fetched for exactly the pull scope, and used for all requests."""
    _assert_two_tokens_at_most(make_deployment(), FakeTokenService(fake_registry, challenges=CHALLENGES[shape]))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_tokens_of_every_spelling(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, spelling: str
) -> None:
    """However the token response is written, the token is used, and reused."""
    _assert_two_tokens_at_most(make_deployment(), FakeTokenService(fake_registry, spell=SPELLINGS[spelling]))


@pytest.mark.parametrize("spelling", ["both", "expires_in 5"])
def test_a_hundred_requests_cost_two_tokens(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, spelling: str
) -> None:
    """A token is used for at least one minute, whatever lifetime it states."""
    _assert_two_tokens_at_most(make_deployment(), FakeTokenService(fake_registry, spell=SPELLINGS[spelling]), tens=10)


def test_each_repository_has_its_own_scope(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """A token for one repository is not used for another."""
    service = FakeTokenService(fake_registry)
    deployment = make_deployment()
    for repo in ("a", "b/c"):
        fake_registry.add_image(repo, "v1")
        assert deployment.get(f"/v2/up.test/{repo}/manifests/v1").status == 200
    assert service.scopes() == [["repository:a:pull"], ["repository:b/c:pull"]]


TOKEN_FAILURES: dict[str, tuple[Change, set[int]]] = {
    "401": (faults.challenged('Basic realm="token service"'), {403, 404}),
    "403": (faults.error_response(403, "DENIED"), {403, 404}),
    "500": (faults.error_response(500), {503}),
    "429": (faults.error_response(429, "TOOMANYREQUESTS", "5"), {429, 503}),
    "html": (faults.html_page(), {502, 503}),
    "no token in it": (
        faults.replaced(200, b'{"token": ""}', ("Content-Type", "application/json")),
        {403, 404, 502, 503},
    ),
    "not an object": (faults.replaced(200, b"[" * 60_000, ("Content-Type", "application/json")), {502, 503}),
    "endless": (faults.endless(), {502, 503}),
    "hangs": (faults.silent(), {503, 504}),
    "hangs up": (faults.disconnected("rst"), {502, 503}),
}


@pytest.mark.parametrize("failure", TOKEN_FAILURES)
def test_a_token_service_that_fails(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, failure: str
) -> None:
    """Few requests, a bounded time, and the matching error; the client sees nothing of the token service's response."""
    change, statuses = TOKEN_FAILURES[failure]
    FakeTokenService(fake_registry)
    fake_registry.on("token", change)
    fake_registry.add_image("app", "v1")
    deployment = make_deployment()
    response = deployment.get("/v2/up.test/app/manifests/v1")
    assert response.status in statuses, response
    assert response.error
    assert is_within(response.took_s, 11)  # 10 s, since nothing is cached
    assert fake_registry.count("manifest") + fake_registry.count("ping") <= 2
    assert fake_registry.count("token") <= 2
    assert fake_registry.sent_bytes("token") < 32 << 20
    deployment.assert_no_leak(response)


@pytest.mark.parametrize("failure", ["500", "html", "hangs", "hangs up"])
def test_a_cached_tag_outlives_the_token_service(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, failure: str
) -> None:
    """A token service that is down counts as an outage: what was pulled before is served stale."""
    service = FakeTokenService(fake_registry)
    image = fake_registry.add_image("app", "v1")
    deployment = make_deployment()
    assert deployment.get("/v2/up.test/app/manifests/v1").status == 200
    service.revoke_all()
    fake_registry.on("token", TOKEN_FAILURES[failure][0])
    response = deployment.get("/v2/up.test/app/manifests/v1")
    assert (response.status, response.body) == (200, image.body)
    assert (response.header("Warning") or "").startswith("299 ")


@pytest.mark.parametrize(("auth", "status"), [("anonymous", 404), ("basic", 403)])
def test_tokens_that_the_registry_rejects(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, auth: str, status: int
) -> None:
    """After one retry: 404 for an anonymous upstream, 403 for one with credentials."""
    fake_registry.on("manifest", faults.challenged(bearer_challenge(f"{fake_registry.url}/token", "app")))
    image = fake_registry.add_image("app", "v1")
    credentials = {"type": auth, **({"username": USER, "password": PASSWORD} if auth == "basic" else {})}
    deployment = make_deployment(upstreams=[upstream("up.test", fake_registry.url, auth=credentials)])
    response = deployment.get(f"/v2/up.test/app/manifests/{image.digest}")
    assert response.status == status
    assert response.error in ({"DENIED"} if status == 403 else {"NAME_UNKNOWN", "MANIFEST_UNKNOWN"})
    assert fake_registry.count("manifest") <= 2
    assert fake_registry.count("token") <= 2
    assert PASSWORD not in deployment.read_log()


def test_a_rejected_tag_costs_few_requests(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """By tag there is one more registry request, for upstreams that reject HEAD but not GET."""
    fake_registry.on("manifest", faults.challenged(bearer_challenge(f"{fake_registry.url}/token", "app")))
    deployment = make_deployment()
    assert deployment.get("/v2/up.test/app/manifests/v1").status == 404
    assert fake_registry.count("manifest") <= 3
    assert fake_registry.count("token") <= 2


@pytest.mark.parametrize("kind", ["manifests", "blobs"])
@pytest.mark.parametrize(("auth", "status"), [("anonymous", 404), ("basic", 403)])
def test_a_403_is_no_outage(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, kind: str, auth: str, status: int
) -> None:
    """403 from the upstream is no outage, and its message is not passed on."""
    fake_registry.on(None, faults.error_response(403, "DENIED"), listener="registry")
    credentials = {"type": auth, **({"username": USER, "password": PASSWORD} if auth == "basic" else {})}
    deployment = make_deployment(upstreams=[upstream("up.test", fake_registry.url, auth=credentials)])
    response = deployment.get(f"/v2/up.test/app/{kind}/sha256:{'3' * 64}")
    assert response.status == status
    assert "message from the upstream" not in response.body.decode()
    assert fake_registry.count() <= 3


@pytest.mark.parametrize(
    "realm", ["http://169.254.169.254/token", "file:///etc/passwd", "/token", "", "http://", "gopher://x/"]
)
def test_invalid_and_unreachable_realms(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, realm: str
) -> None:
    """A realm that cannot be a token service is an error within a bounded time."""
    FakeTokenService(fake_registry, realm=realm)
    fake_registry.add_image("app", "v1")
    deployment = make_deployment(
        upstreams=[
            upstream("up.test", fake_registry.url, auth={"type": "basic", "username": USER, "password": PASSWORD})
        ]
    )
    response = deployment.get("/v2/up.test/app/manifests/v1")
    assert response.status in (403, 404, 502, 503, 504)
    assert is_within(response.took_s, 4)
    deployment.assert_no_leak(response)


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_credentials_do_not_follow_a_realm_to_another_host(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, auth: str
) -> None:
    """A realm on another host gets no credentials: the response that names it may be forged."""
    elsewhere = fake_registry.listen("elsewhere", "127.0.0.2")
    FakeTokenService(fake_registry, realm=f"{elsewhere.url}/token")
    fake_registry.add_image("app", "v1")
    credentials = {"type": auth, "username": USER, "password": PASSWORD}
    deployment = make_deployment(upstreams=[upstream("up.test", fake_registry.url, auth=credentials)])
    deployment.get("/v2/up.test/app/manifests/v1")
    for exchange in fake_registry.received(listener="elsewhere"):
        assert exchange.request.header("Authorization") is None
        assert PASSWORD not in exchange.request.target + exchange.request.body.decode()


def test_a_trusted_host_gets_the_credentials(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """`trusted_hosts` states that a token service on another host belongs to the registry."""
    elsewhere = fake_registry.listen("elsewhere", "127.0.0.2")
    FakeTokenService(fake_registry, realm=f"{elsewhere.url}/token", login=basic(USER, PASSWORD))
    fake_registry.add_image("app", "v1")
    credentials = {"type": "basic", "username": USER, "password": PASSWORD}
    deployment = make_deployment(
        upstreams=[upstream("up.test", fake_registry.url, auth=credentials, trusted_hosts=[elsewhere.authority])]
    )
    assert deployment.get("/v2/up.test/app/manifests/v1").status == 200
    assert {e.request.header("Authorization") for e in fake_registry.received(listener="elsewhere")} == {
        basic(USER, PASSWORD)
    }


def test_basic_credentials_are_exchanged_at_the_realm(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """A Bearer challenge sends the credentials to the realm on the same host, and only the token to the registry."""
    FakeTokenService(fake_registry, login=basic(USER, PASSWORD))
    image = fake_registry.add_image("app", "v1")
    credentials = {"type": "basic", "username": USER, "password": PASSWORD}
    deployment = make_deployment(upstreams=[upstream("up.test", fake_registry.url, auth=credentials)])
    assert deployment.get("/v2/up.test/app/manifests/v1").body == image.body
    assert deployment.get(f"/v2/up.test/app/blobs/{image.layers[0]}").status == 200
    registry = {e.request.header("Authorization") for e in fake_registry.received() if e.request.kind != "token"}
    assert basic(USER, PASSWORD) not in registry
    assert fake_registry.count("token") == 1


def test_basic_credentials_for_a_basic_challenge(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """A registry that requires Basic (ECR) gets the Basic credentials."""
    require_authorization(fake_registry, basic(USER, PASSWORD))
    image = fake_registry.add_image("app", "v1")
    credentials = {"type": "basic", "username": USER, "password": PASSWORD}
    deployment = make_deployment(upstreams=[upstream("up.test", fake_registry.url, auth=credentials)])
    assert deployment.get("/v2/up.test/app/manifests/v1").body == image.body
    assert PASSWORD not in deployment.read_log()


def test_a_bearer_secret_is_sent_verbatim_first(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """`auth.type: bearer`: the secret is the token."""
    require_authorization(fake_registry, f"Bearer {PASSWORD}", bearer_challenge(f"{fake_registry.url}/token", "app"))
    image = fake_registry.add_image("app", "v1")
    credentials = {"type": "bearer", "password": PASSWORD}
    deployment = make_deployment(upstreams=[upstream("up.test", fake_registry.url, auth=credentials)])
    assert deployment.get("/v2/up.test/app/manifests/v1").body == image.body
    assert fake_registry.count("token") == 0


def test_a_rejected_bearer_secret_is_exchanged(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """A `ghp_…` secret that the registry rejects is used as a password at the realm; that is remembered."""
    service = FakeTokenService(fake_registry, login=basic(USER, PASSWORD))
    image = fake_registry.add_image("app", "v1")
    credentials = {"type": "bearer", "username": USER, "password": PASSWORD}
    deployment = make_deployment(upstreams=[upstream("up.test", fake_registry.url, auth=credentials)])
    for _ in range(5):
        assert deployment.get("/v2/up.test/app/manifests/v1").body == image.body
    assert len(service.requests()) <= 2
    verbatim = [
        e for e in fake_registry.received("manifest") if e.request.header("Authorization") == f"Bearer {PASSWORD}"
    ]
    assert len(verbatim) <= 2


def test_a_token_that_expires_between_two_blobs(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """The next request fetches a new token, and the client sees no error."""
    service = FakeTokenService(fake_registry)
    image = fake_registry.add_image("app", "v1", [b"first", b"second"])
    deployment = make_deployment()
    for layer, body in zip(image.layers, (b"first", b"second"), strict=True):
        assert deployment.get(f"/v2/up.test/app/blobs/{layer}").body == body
        service.revoke_all()
    assert len(service.requests()) == 2


def test_a_token_that_expires_in_the_middle_of_a_transfer(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """A transfer that is resumed after its token has expired uses a new token."""
    service = FakeTokenService(fake_registry)
    blob = b"0123456789abcdef" * 200_000
    digest = fake_registry.add_blob(blob)
    deployment = make_deployment()

    def expire(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        service.revoke_all()
        return faults.cut(0.5)(request, response)

    fake_registry.on("blob", expire, when=lambda request: request.header("Authorization") is not None, times=1)
    response = deployment.get(f"/v2/up.test/app/blobs/{digest}")
    assert (response.ended, response.body == blob) == ("length", True)


def test_insufficient_scope_is_retried_once(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """A token with insufficient scope is replaced by a new one, and the client does not notice."""
    service = FakeTokenService(fake_registry)
    challenge = bearer_challenge(f"{fake_registry.url}/token", "app") + ',error="insufficient_scope"'
    image = fake_registry.add_image("app", "v1")
    deployment = make_deployment()
    assert deployment.get(f"/v2/up.test/app/blobs/{image.layers[0]}").status == 200
    fake_registry.on(
        "manifest",
        faults.challenged(challenge),
        when=lambda request: request.header("Authorization") is not None,
        times=1,
    )
    assert deployment.get(f"/v2/up.test/app/manifests/{image.digest}").body == image.body
    assert len(service.requests()) == 2


def test_a_token_that_expires_between_two_checks(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """A cached tag is fresh, not stale, when only the token had expired; HEAD is enough to check it."""
    service = FakeTokenService(fake_registry)
    fake_registry.add_image("app", "v1")
    deployment = make_deployment()
    assert deployment.get("/v2/up.test/app/manifests/v1").status == 200
    service.revoke_all()
    gets = fake_registry.count("manifest", "GET")
    response = deployment.get("/v2/up.test/app/manifests/v1")
    assert (response.status, response.header("Warning")) == (200, None)
    assert len(service.requests()) == 2
    assert fake_registry.count("manifest", "GET") == gets


def test_one_refresh_for_many_waiting_requests(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """Fifty requests that find their token expired wait for one new token."""
    service = FakeTokenService(fake_registry)
    digests = [fake_registry.add_blob(f"blob {number}".encode()) for number in range(51)]
    deployment = make_deployment()
    assert deployment.get(f"/v2/up.test/app/blobs/{digests[0]}").status == 200
    service.revoke_all()
    responses = deployment.get_concurrently([f"/v2/up.test/app/blobs/{digest}" for digest in digests[1:]])
    assert {response.status for response in responses} == {200}
    eventually(lambda: all(each.ended for each in service.requests()), "the token requests have ended")
    assert len(service.requests()) == 2


@pytest.mark.parametrize("status", [400, 404, 405, 422, 500])
def test_a_scope_without_a_token_concerns_one_repository(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, status: int
) -> None:
    """A client that asks for a bad name again and again keeps nobody from the other repositories."""
    tokens = FakeScopedTokens(fake_registry)
    tokens.grant = lambda _, scopes: status if "repository:org/bad:pull" in scopes else scopes
    cached = fake_registry.add_image("org/cached", "v1")
    deployment = make_deployment()
    assert deployment.get("/v2/up.test/org/cached/manifests/v1").status == 200
    for number in range(8):
        bad = deployment.get("/v2/up.test/org/bad/manifests/v1")
        assert bad.status == (502 if status < 500 else 503)
        assert (bad.header("Retry-After") is None) == (status < 500)
        deployment.assert_no_leak(bad)
        image = fake_registry.add_image(f"org/good-{number}", "v1")
        for repo, body in ((f"org/good-{number}", image.body), ("org/cached", cached.body)):
            before = fake_registry.count("manifest", repo=repo)
            good = deployment.get(f"/v2/up.test/{repo}/manifests/v1")
            assert (good.status, good.body, good.header("Warning")) == (200, body, None)
            assert fake_registry.count("manifest", repo=repo) > before


@pytest.mark.parametrize("status", [400, 404])
def test_a_cached_tag_outlives_its_token(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, status: int
) -> None:
    """The token service has no token for it any more, which is not the word of the registry that it does not exist."""
    tokens = FakeScopedTokens(fake_registry)
    image = fake_registry.add_image("app", "v1")
    deployment = make_deployment()
    assert deployment.get("/v2/up.test/app/manifests/v1").status == 200
    tokens.grant = lambda *_: status
    tokens.expire()
    for _ in range(3):
        response = deployment.get("/v2/up.test/app/manifests/v1")
        assert (response.status, response.body) == (200, image.body)
        assert (response.header("Warning") or "").startswith("299 ")


@pytest.mark.parametrize("refusal", [400, 401, 403, "other service"])
def test_a_cached_image_outlives_a_refused_token(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, refusal: int | str
) -> None:
    """Tags are fresh, and blobs and other tags are fetched, after one new token."""
    tokens = FakeScopedTokens(fake_registry)
    tokens.grant = lambda name, scopes: scopes if name == "main" else 401
    if isinstance(refusal, int):
        tokens.refusal = refusal
    else:
        tokens.challenge = lambda repo, token: bearer_challenge(tokens.realm("other" if token else "main"), repo)
    image = fake_registry.add_image("app", "v1", [b"a layer", b"another layer"])
    other = fake_registry.add_image("app", "v2")
    deployment = make_deployment()
    paths = {
        "manifests/v1": image.body,
        f"blobs/{image.layers[0]}": b"a layer",
        "manifests/v2": other.body,
        f"blobs/{image.layers[1]}": b"another layer",
    }
    for number in range(len(paths)):
        for path in list(paths)[: number + 1]:
            response = deployment.get(f"/v2/up.test/app/{path}")
            assert (response.status, response.body, response.header("Warning")) == (200, paths[path], None)
        tokens.expire()
    assert [name for name, _ in tokens.asked()] == ["main"] * len(paths)


def test_a_redirect_to_a_host_that_requires_a_login(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """The client learns what to set, the log which host it is. With `trusted_hosts`, the host gets the login."""
    node = fake_registry.listen("node", "127.0.0.2")
    image = fake_registry.add_image("app", "v1")
    require_authorization(fake_registry, basic(USER, PASSWORD))
    for kind in ("manifest", "blob"):
        fake_registry.on(
            kind,
            faults.redirected(lambda request: f"{node.url}{request.target}"),
            listener="registry",
            when=lambda request: request.header("Authorization") is not None,
        )
    auth = {"type": "basic", "username": USER, "password": PASSWORD}
    deployment = make_deployment(
        upstreams=[
            upstream("up.test", fake_registry.url, auth=auth),
            upstream("trusting.test", fake_registry.url, auth=auth, trusted_hosts=[node.authority]),
        ]
    )
    for path in ("manifests/v1", f"manifests/{image.digest}", f"blobs/{image.config}"):
        response = deployment.get(f"/v2/up.test/app/{path}")
        assert (response.status, response.header("Retry-After")) == (502, None)
        assert b"trusted_hosts" in response.body
        deployment.assert_no_leak(response)
    assert {each.request.header("Authorization") for each in fake_registry.received(listener="node")} == {None}
    deployment.wait_for_log(node.authority)
    for path in ("manifests/v1", f"blobs/{image.config}"):
        assert deployment.get(f"/v2/trusting.test/app/{path}").status == 200
    assert PASSWORD not in deployment.read_log()
