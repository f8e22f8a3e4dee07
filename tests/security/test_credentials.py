"""Where credentials are sent. Each deployment is searched for its canaries when its test ends."""

import itertools
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
import trustme

from tests.s3.store.proxy import S3Proxy, s3_error
from tests.security.canaries import WatchedDeployment
from tests.security.conftest import BEARER, CLIENT, PASSWORD, STORE, bucket_settings
from tests.support import faults
from tests.support.busy_machine import is_within
from tests.support.certificates import server_context
from tests.support.deployment import upstream
from tests.support.fake_auth import FakeTokenService, bearer_challenge, require_authorization
from tests.support.fake_registry import FakeRegistry, basic
from tests.support.raw_http import Request, ScriptedResponse

BLOB = Random(34).randbytes(50_000)
CLIENTS_OWN = {
    "Authorization": f"Bearer {CLIENT.text}",
    "Cookie": f"session={CLIENT.text}",
    "X_Registry_Auth": CLIENT.text,
    "X_Registry_Token": CLIENT.text,
    "Proxy_Authorization": f"Basic {CLIENT.text}",
}


@pytest.mark.parametrize("where", ["another host", "another port", "another scheme"])
@pytest.mark.parametrize("prefix", ["basic.test", "bearer.test"])
def test_c1_c3_credentials_do_not_follow_a_redirect(
    make_deployment: Callable[..., WatchedDeployment],
    fake_registry: FakeRegistry,
    tmp_path: Path,
    where: str,
    prefix: str,
) -> None:
    """The login of an upstream does not follow redirects; a client's own credentials are sent nowhere."""
    authority = trustme.CA()
    context = server_context(authority, "127.0.0.1")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    fake_registry.listen(
        "cdn", "127.0.0.2" if where == "another host" else "127.0.0.1", tls=context if "scheme" in where else None
    )
    want = basic("ann", PASSWORD.text) if prefix == "basic.test" else f"Bearer {BEARER.text}"
    require_authorization(
        fake_registry, want, 'Basic realm="x"' if prefix == "basic.test" else 'Bearer realm="http://x/"'
    )
    digest = fake_registry.add_blob(BLOB)
    fake_registry.on(
        "blob",
        faults.redirected(lambda request: fake_registry.presign(digest, listener="cdn")),
        when=lambda request: request.header("Authorization") == want,
    )
    auth = (
        {"type": "basic", "username": "ann", "password": PASSWORD.text}
        if prefix == "basic.test"
        else {"type": "bearer", "password": BEARER.text}
    )
    deployment = make_deployment(
        upstreams=[upstream(prefix, fake_registry.url, auth=auth, ca_file=str(tmp_path / "ca.pem"))]
    )
    response = deployment.get(f"/v2/{prefix}/app/blobs/{digest}", **CLIENTS_OWN)
    assert response.body == BLOB
    (download,) = fake_registry.received(listener="cdn")
    names = {name.lower() for name, _ in download.request.headers}
    assert names <= {"host", "user-agent", "accept-encoding", "accept", "range"}


def test_c2_a_redirect_back_to_the_registry(
    make_deployment: Callable[..., WatchedDeployment], fake_registry: FakeRegistry
) -> None:
    """After a redirect back, the login is sent again, to exactly the configured scheme, host and port."""
    require_authorization(fake_registry, basic("ann", PASSWORD.text))
    digest = fake_registry.add_blob(BLOB)
    for name, host in (("there", "127.0.0.2"), ("elsewhere", "127.0.0.1")):
        fake_registry.listen(name, host)
    ways = {
        "registry": f"{fake_registry.listeners['there'].url}/v2/app/blobs/{digest}",
        "there": f"{fake_registry.listeners['elsewhere'].url}/v2/app/blobs/{digest}",
        "elsewhere": f"{fake_registry.url}/v2/back/blobs/{digest}",
    }
    for name, location in ways.items():
        fake_registry.on(
            None,
            faults.redirected(location),
            listener=name,
            repo="app",
            when=lambda request: request.listener != "registry" or request.header("Authorization") is not None,
        )
    deployment = make_deployment()
    assert deployment.get(f"/v2/basic.test/app/blobs/{digest}").body == BLOB
    sent = [(each.request.listener, each.request.header("Authorization")) for each in fake_registry.received("blob")]
    login = basic("ann", PASSWORD.text)
    assert sent[-4:] == [("registry", login), ("there", None), ("elsewhere", None), ("registry", login)]


def test_c3_a_clients_own_login_is_no_part_of_a_cache_key(
    make_deployment: Callable[..., WatchedDeployment], fake_registry: FakeRegistry
) -> None:
    """Two clients with logins of their own share one copy, and their logins reach no upstream."""
    image = fake_registry.add_image("app", "v1", [BLOB])
    deployment = make_deployment()
    for number in range(3):
        own = {name: f"{value}{number}" for name, value in CLIENTS_OWN.items()}
        assert deployment.get("/v2/up.test/app/manifests/v1", **own).body == image.body
        assert deployment.get(f"/v2/up.test/app/blobs/{image.layers[0]}", **own).body == BLOB
    assert fake_registry.count("manifest", "GET") == 1
    assert fake_registry.count("blob", "GET") == 1


SCOPES = [
    "repository:other:pull",
    "repository:app:pull,push",
    "repository:app:*",
    "repository:app:push",
    "registry:catalog:*",
    "repository:app:pull repository:other:pull",
    "repository(plugin):other:pull",
    "",
    "a" * 5000,
]


def test_c4_the_scope_of_a_challenge_is_ignored(
    make_deployment: Callable[..., WatchedDeployment], fake_registry: FakeRegistry
) -> None:
    """Whatever scope a challenge names, the token is requested for pulling from this repository and nothing else."""
    challenge_scopes = iter(SCOPES)
    service = FakeTokenService(
        fake_registry,
        login=basic("ann", PASSWORD.text),
        challenges=lambda realm, repo: [f'Bearer realm="{realm}",service="s",scope="{next(challenge_scopes)}"'],
    )
    image = fake_registry.add_image("app", "v1")
    deployment = make_deployment()
    for _ in SCOPES:
        assert deployment.get("/v2/basic.test/app/manifests/v1").body == image.body
        service.revoke_all()
    assert len(service.requests()) >= len(SCOPES) - 1
    assert set(map(tuple, service.scopes())) == {("repository:app:pull",)}


def test_c4_basic_is_not_sent_to_a_realm(
    make_deployment: Callable[..., WatchedDeployment], fake_registry: FakeRegistry
) -> None:
    """The realm of a Basic challenge is a text even if it looks like a URL; no connection is made there."""
    elsewhere = fake_registry.listen("elsewhere", "127.0.0.2")
    require_authorization(fake_registry, basic("ann", PASSWORD.text), f'bAsIc realm="{elsewhere.url}/token"')
    image = fake_registry.add_image("app", "v1")
    assert make_deployment().get("/v2/basic.test/app/manifests/v1").body == image.body
    assert elsewhere.connections == 0


LIVES = [0, -1, 10**12, "300", None, [], True, 1e308]


def test_c5_invalid_token_lifetimes(
    make_deployment: Callable[..., WatchedDeployment], fake_registry: FakeRegistry
) -> None:
    """Whatever `expires_in` says, a token is used for one minute at least: five pulls cost one token."""
    lives = iter(LIVES)
    service = FakeTokenService(fake_registry, spell=lambda token: {"token": token, "expires_in": next(lives)})
    deployment = make_deployment()
    for number in range(len(LIVES)):
        image = fake_registry.add_image(f"life-{number}", "v1")
        for _ in range(5):
            assert deployment.get(f"/v2/up.test/life-{number}/manifests/v1").body == image.body
        assert len(service.requests()) == number + 1


TOKEN_BODIES = {
    "100 MiB": faults.endless(),
    "nested": faults.with_body(b'{"a":' * 10_000),
    "a number of 60,000 digits": faults.with_body(b'{"token":' + b"1" * 60_000 + b"}"),
    "a token with a line end": faults.with_body(b'{"token":"a\\r\\nX: y"}'),
    "a token of 1 MiB": faults.with_body(json.dumps({"token": "a" * 2**20}).encode()),
    "a token that is a list": faults.with_body(b'{"token":["a"]}'),
}


def test_c5_invalid_token_responses(
    make_deployment: Callable[..., WatchedDeployment], fake_registry: FakeRegistry
) -> None:
    """At most 64 KiB are read, and an invalid token response is 502 or 503."""
    FakeTokenService(fake_registry)
    deployment = make_deployment(
        upstreams=[upstream(f"up{number}.test", fake_registry.url) for number in range(len(TOKEN_BODIES))]
    )
    for number, (name, change) in enumerate(TOKEN_BODIES.items()):
        rule = fake_registry.on("token", change)
        fake_registry.clear_exchanges()
        response = deployment.get(f"/v2/up{number}.test/app/manifests/v1")
        assert (response.status in (502, 503), is_within(response.took_s, 2)) == (True, True), name
        assert rule.applied > 0, name
        assert fake_registry.sent_bytes("token") < 10 * 2**20, (
            name
        )  # what the kernel takes beyond the 64 KiB that are read
        fake_registry.remove_rules(rule)


def _echo(status: int) -> Callable[[Request, ScriptedResponse], ScriptedResponse]:
    """An error response that contains the whole request, as debugging proxies send it."""

    def change(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        body_text = json.dumps({"errors": [{"code": "X", "message": str(request)}]})
        sent = request.header("Authorization") or "nothing"
        return response.of(
            status, body_text.encode(), ("Content-Type", "application/json"), ("X-Sent", sent), ("Warning", sent)
        )

    return change


def test_c6_errors_that_echo_the_request(
    make_deployment: Callable[..., WatchedDeployment], fake_registry: FakeRegistry
) -> None:
    """An error of the registry or its token service may contain the login; neither clients nor the log get it."""
    FakeTokenService(fake_registry, login=basic("ann", PASSWORD.text))
    ways = list(itertools.product(("manifest", "token", "blob"), (200, 400, 401, 403, 404, 418, 429, 500, 503)))
    auth = {"type": "basic", "username": "ann", "password": PASSWORD.text}
    deployment = make_deployment(
        upstreams=[upstream(f"up{number}.test", fake_registry.url, auth=auth) for number in range(len(ways))],
        logger={"level": "debug"},
    )
    for number, (kind, status) in enumerate(ways):
        rule = fake_registry.on(kind, _echo(status), when=lambda request: request.header("Authorization") is not None)
        for path in ("manifests/v1", f"manifests/sha256:{'1' * 64}", f"blobs/sha256:{'1' * 64}", "tags/list"):
            response = deployment.get(f"/v2/up{number}.test/app/{path}")
            assert response.status >= 400, (kind, status, path)
            deployment.assert_no_leak(response)
        assert rule.applied > 0, (kind, status)
        fake_registry.remove_rules(rule)


def test_c6_connections_that_fail(
    make_deployment: Callable[..., WatchedDeployment], fake_registry: FakeRegistry
) -> None:
    """No TLS, unknown name, connection refused, a bucket that echoes its request: errors without a secret."""
    auth = {"type": "basic", "username": "ann", "password": PASSWORD.text}
    with closing(S3Proxy(0)) as bucket:
        bucket.rule = lambda request: s3_error(403, "AccessDenied", f"<Sent>{STORE.text}{request.headers}</Sent>")
        deployment = make_deployment(
            upstreams=[
                upstream("tls.test", f"https://{fake_registry.authority}", auth=auth),
                upstream("dns.test", "https://unknown.invalid", auth=auth),
                upstream("gone.test", "https://127.0.0.1:1", auth=auth),
                upstream(
                    "proxy.test", "https://registry.example.com", auth=auth, proxy=f"http://u:{CLIENT.text}@127.0.0.1:1"
                ),
            ],
            storage=bucket_settings(bucket),
            logger={"level": "debug"},
        )
        for prefix in ("tls", "dns", "gone", "proxy"):
            for path in ("manifests/v1", f"blobs/sha256:{'1' * 64}"):
                response = deployment.get(f"/v2/{prefix}.test/app/{path}")
                assert response.status in (502, 503, 504)
                deployment.assert_no_leak(response)
        assert bucket.requests


def test_c9_two_logins_at_one_registry(
    make_deployment: Callable[..., WatchedDeployment], fake_registry: FakeRegistry
) -> None:
    """Two upstreams on one host have separate tokens, even when both request the same repository at once."""
    logins: dict[str, str | None] = {}

    def issue(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        token = f"token-{len(logins)}"
        logins[token] = request.header("Authorization")
        return response.of(200, json.dumps({"token": token}).encode(), ("Content-Type", "application/json"))

    def guard(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        token = (request.header("Authorization") or "").removeprefix("Bearer ")
        return (
            response
            if token in logins
            else faults.challenged(bearer_challenge(f"{fake_registry.url}/token", request.repo))(request, response)
        )

    fake_registry.on("manifest", guard)
    fake_registry.on("token", issue)
    images = [fake_registry.add_image("app", f"v{number}", [bytes([number])]) for number in range(10)]
    deployment = make_deployment()
    paths = [f"/v2/{prefix}/app/manifests/v{number}" for number in range(10) for prefix in ("basic.test", "up.test")]
    assert [response.body for response in deployment.get_concurrently(paths)] == [
        image.body for image in images for _ in range(2)
    ]
    assert set(logins.values()) == {None, basic("ann", PASSWORD.text)}
    used = [
        (each.request.header("Authorization") or "").removeprefix("Bearer ")
        for each in fake_registry.received("manifest")
    ]
    by_login = {login: sum(logins.get(token) == login for token in used if token) for login in logins.values()}
    assert min(by_login.values()) >= len(images)  # each upstream requested each tag, with its own token
