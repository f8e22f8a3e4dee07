"""Access tokens at a running server: each has the rights of the login that it was made for, and no others.

Everybody may pull what is below `up.test/open`; the rest needs a login. Two workers share the requests.
"""

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import attrs
import pytest

from dockyard.oci.challenge import parse_challenges
from tests.protocol.test_logins import GITHUB, PASSWORD, RULES, STRANGER, basic, job
from tests.support.bodies import Synthetic
from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.deployment import Deployment, eventually, open_deployment, upstream
from tests.support.fake_accounts import Account, FakeAccounts
from tests.support.fake_registry import FakeRegistry
from tests.support.htpasswd import write_htpasswd
from tests.support.http_client import Response, StreamedResponse
from tests.support.paths import ROOT
from tests.support.token_issuer import key_set

OPEN, CLOSED = "/v2/up.test/open/app/manifests/v1", "/v2/up.test/team/app/manifests/v1"
GITHUB_RULES = [RULES[0], {"allow": True, "who": ["alice", "github:repo:acme/*"]}]
ALICE, BOB, WRONG = basic("alice", PASSWORD), basic("bob", "other"), basic("alice", "canary-wrong")
ROUNDS = 6


@attrs.define
class Server:
    """A Dockyard that gives access tokens."""

    deployment: Deployment
    users: Path

    def get(self, path: str, login: str | None = None, method: str = "GET", **headers: str) -> Response:
        """Send a request on a connection of its own, so that each worker gets some."""
        login_header = {} if login is None else {"Authorization": login}
        return self.deployment.request(method, path, **headers, **login_header)

    def post(self, fields: Mapping[str, str] | bytes, path: str = "/token", **headers: str) -> Response:
        """Send a form."""
        body = fields if isinstance(fields, bytes) else urlencode(fields).encode()
        lines = {"Host": "dockyard.test", "Content-Length": str(len(body))} | headers
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
        with self.deployment.send_raw(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body) as stream:
            return _read(stream)

    def token(self, login: str | None = None) -> str:
        """The header with a token for a login, or for none."""
        response = self.get("/token?service=dockyard", login)
        assert response.status == 200, response.body
        return f"Bearer {response.json['token']}"

    def statuses(self, path: str, login: str | None = None, **headers: str) -> set[int]:
        """The statuses of some responses, of all workers."""
        return {self.get(path, login, **headers).status for _ in range(ROUNDS)}


def _read(stream: StreamedResponse) -> Response:
    stream.head()
    body, ended = stream.rest()
    return Response(stream.status, stream.headers, body, ended, 0.0)


@contextlib.contextmanager
def open_server(directory: Path, *, workers: int = 2, **access: Any) -> Iterator[Server]:
    """Start a server whose log has all that it may have."""
    users = directory / "htpasswd"
    write_htpasswd(users, {"alice": PASSWORD, "bob": "other"})
    (directory / "github.json").write_bytes(key_set(GITHUB.jwk()))
    issuer = {"name": "github", "issuer": GITHUB.url, "audience": GITHUB.audience, "jwks": f"{directory}/github.json"}
    settings = {"htpasswd": str(users), "jwt": [issuer], "rules": GITHUB_RULES, "challenge": "bearer"}
    settings["audit"] = str(directory / "audit")
    with FakeRegistry() as fake_registry:
        for repo in ("open/app", "team/app"):
            fake_registry.add_image(repo, "v1", [Synthetic(1000)])
        with open_deployment(
            fake_registry,
            directory / "deployment",
            workers=workers,
            upstreams=[upstream("up.test", fake_registry.url)],
            access=settings | access,
            logger={"level": "debug"},
            server={
                "trusted_proxies": ["127.0.0.1"],
                "log": {"enabled": True, "level": "debug", "request_body": True, "response_body": True},
            },
        ) as deployment:
            yield Server(deployment, users)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for tests that change nothing."""
    with open_server(tmp_path_factory.mktemp("tokens")) as server:
        yield server


def parameters(response: Response) -> Mapping[str, str]:
    """The parameters of the challenge of a response."""
    (challenge,) = parse_challenges([response.header("WWW-Authenticate") or ""])
    assert challenge.scheme == "bearer"
    return challenge.parameters


@pytest.mark.parametrize("path", ["/v2/", "/v2", "/up.test/v2/"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_api_asks_for_a_token(server: Server, path: str, method: str) -> None:
    """Also where clients without a login may pull something: they get a token too."""
    response = server.get(path, method=method, Host="dockyard.test:5000")
    assert response.status == 401
    assert parameters(response) == {"realm": "http://dockyard.test:5000/token", "service": "dockyard"}
    assert response.header("Cache-Control") == "no-store"
    assert server.statuses(path, server.token()) == {200}
    assert server.statuses(path, server.token(ALICE)) == {200}
    assert server.get(path, server.token()).header("WWW-Authenticate") is None


def test_a_login_that_is_sent_itself_is_accepted(server: Server) -> None:
    """As some clients are configured to do."""
    assert server.statuses("/v2/", ALICE) == {200}
    assert server.statuses(CLOSED, ALICE) == {200}
    assert server.statuses(CLOSED, f"Bearer {job('acme/app')}") == {200}
    assert server.statuses(CLOSED, BOB) == {403}
    for path in ("/v2/", OPEN, CLOSED):
        refused = server.get(path, WRONG)
        assert refused.status in {401, 429}
        assert "error" not in parameters(refused)


@pytest.mark.parametrize(
    ("login", "opened", "closed"),
    [
        (None, 200, 401),
        (basic("", ""), 200, 401),
        (ALICE, 200, 200),
        (BOB, 200, 403),
        (f"Bearer {job('acme/app')}", 200, 200),
        (basic("any", job("acme/app")), 200, 200),
        (basic("any", job("evil/app")), 200, 403),
    ],
)
def test_a_token_has_the_rights_of_its_login(server: Server, login: str | None, opened: int, closed: int) -> None:
    """With each worker. What the login would get, the token gets: the same bytes and headers."""
    token = server.token(login)
    assert server.statuses(OPEN, token) == {opened}
    assert server.statuses(CLOSED, token) == {closed}
    for path in (OPEN, CLOSED, "/v2/up.test/none/app/manifests/v1", "/v2/nosuch.test/app/manifests/v1"):
        mine, direct = server.get(path, token), server.get(path, login)
        assert (mine.status, mine.body) == (direct.status, direct.body)
        ignored = {"date", "www-authenticate", "age", "cache-status"}
        assert [pair for pair in mine.headers if pair[0].lower() not in ignored] == [
            pair for pair in direct.headers if pair[0].lower() not in ignored
        ]


def test_a_denied_token_says_that_it_does_not_suffice(server: Server) -> None:
    """So that clients do not repeat the request with it; without a token there is no error."""
    denied = parameters(server.get(CLOSED, server.token()))
    assert denied["error"] == "insufficient_scope"
    assert denied["scope"] == "repository:up.test/team/app:pull"
    assert "error" not in parameters(server.get(CLOSED))


@pytest.mark.parametrize(
    "login", [WRONG, basic("eve", "x"), basic("any", job("acme/app", STRANGER)), "Basic !", "Digest x", "Bearer x", ""]
)
def test_a_wrong_login_gets_no_token(server: Server, login: str) -> None:
    """It is not one without a login."""
    refused = server.get("/token", login, X_Forwarded_For="203.0.113.77")
    assert refused.status in {401, 429}
    assert b'token"' not in refused.body
    if refused.status == 401:
        assert refused.header("WWW-Authenticate") == 'Basic realm="dockyard"'
        assert refused.json["errors"][0]["code"] == "UNAUTHORIZED"


def test_what_is_not_valid_is_401_everywhere(server: Server) -> None:
    """Expired, forged, or of another server; also for what needs no login, and to get another token."""
    token = server.token(ALICE)
    for wrong in (f"{token[:-6]}AAAAA=", f"{token}x", "Bearer dockyard.", "Bearer dockyard.gAAAAA", token[:60]):
        for path in ("/v2/", OPEN, CLOSED, "/v2/nosuch.test/app/manifests/v1"):
            refused = server.get(path, wrong)
            assert refused.status == 401, path
            assert parameters(refused)["error"] == "invalid_token"
        assert server.get("/token", wrong).status == 401
    assert server.get("/token", token).status == 401
    assert server.get("/token", basic("any", token.split()[1])).status == 401


def test_the_scheme_is_in_any_case(server: Server) -> None:
    """RFC 9110 section 11.1."""
    _, text = server.token(ALICE).split()
    for scheme in ("bearer ", "BEARER ", "Bearer   "):
        assert server.get(CLOSED, scheme + text).status == 200


def test_the_response_with_a_token(server: Server) -> None:
    """It has all that clients read, and is not stored. What it is requested for does not matter."""
    query = "account=alice&client_id=docker&offline_token=true&service=x&scope=repository%3Aa%3Apush&scope=b&scope=&x=y"
    for method in ("GET", "HEAD"):
        response = server.get(f"/token?{query}", ALICE, method)
        assert response.status == 200
        assert response.header("Cache-Control") == "no-store"
        assert response.header("Content-Type") == "application/json"
    document = server.get(f"/token?{query}", ALICE).json
    assert document["token"] == document["access_token"]
    assert document["expires_in"] == 300
    assert "refresh_token" not in document
    assert server.get(CLOSED, f"Bearer {document['token']}").status == 200


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"grant_type": "password", "username": "alice", "password": PASSWORD}, 200),
        (
            {"grant_type": "password", "username": "any", "password": job("acme/app"), "client_id": "x", "scope": "y"},
            200,
        ),
        ({"grant_type": "password", "username": "", "password": job("acme/app")}, 200),
        ({"grant_type": "password", "username": "", "password": ""}, 401),
        ({"grant_type": "password"}, 401),
    ],
)
def test_a_form(server: Server, fields: Mapping[str, str], status: int) -> None:
    """OAuth 2: the token is the same as with Basic; without a name and a password it is one for no login."""
    response = server.post(fields, Content_Type="application/x-www-form-urlencoded")
    assert response.status == 200
    assert response.header("Cache-Control") == "no-store"
    assert server.statuses(CLOSED, f"Bearer {response.json['access_token']}") == {status}


def test_a_form_counts_more_than_a_header(server: Server) -> None:
    """Clients add configured headers to all requests."""
    right = {"grant_type": "password", "username": "alice", "password": PASSWORD}
    assert server.post(right, Authorization=BOB).status == 200
    token = server.post(right, Authorization=BOB).json["token"]
    assert server.get(CLOSED, f"Bearer {token}").status == 200
    wrong = right | {"password": "x"}
    assert server.post(wrong, Authorization=ALICE, **{"X-Forwarded-For": "203.0.113.78"}).status == 401


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"grant_type=refresh_token&refresh_token=x", 400),
        (b"grant_type=password&username=a&username=b&password=c", 400),
        (b"grant_type=password&grant_type=password&username=alice", 400),
        (b"grant_type=password&username=alice%3Ax&password=y", 400),
        (b"grant_type=password&username=%ff&password=y", 400),
        (b"\xff\xfe", 400),
        (b"{}", 400),
        (b"&".join(b"a=b" for _ in range(100)), 400),
        (b"grant_type=password&username=alice&password=" + b"x" * 12_000, 401),
        (b"grant_type=password&username=alice&password=" + b"x" * 40_000, 413),
    ],
)
def test_a_form_that_is_malformed_or_too_large(server: Server, body: bytes, status: int) -> None:
    """It gets no token, and the server goes on."""
    response = server.post(body, **{"X-Forwarded-For": "203.0.113.79"})
    assert response.status == status
    assert "token" not in response.json
    assert server.get(OPEN).status == 200


def test_a_form_without_a_length_is_refused(server: Server) -> None:
    """It could be used for request smuggling."""
    chunked = {"Content-Length": "", "Transfer-Encoding": "chunked"}
    assert server.post(b"5\r\nhello\r\n0\r\n\r\n", **chunked).status == 400
    assert server.post(b"x" * 10, **{"Content-Length": "", "Connection": "close"}).status == 400


@pytest.mark.parametrize("path", ["/v2/", OPEN, CLOSED, "/token/", "/v2/token", "/up.test/token", "/", "/metrics"])
def test_forms_are_for_tokens_only(server: Server, path: str) -> None:
    """Elsewhere POST is what it always was."""
    response = server.post({"grant_type": "password", "username": "alice", "password": "x"}, path)
    assert response.status == 405


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS"])
def test_other_methods_get_no_token(server: Server, method: str) -> None:
    """There are GET, HEAD and POST."""
    assert server.get("/token", ALICE, method).status == 405


def test_a_login_that_is_too_long_for_a_token(server: Server) -> None:
    """The client learns that, instead of getting a token that it cannot send."""
    long = job("acme/app", padding="x" * 8000)
    refused = server.get("/token", basic("any", long))
    assert refused.status == 400
    assert "access token" in refused.json["errors"][0]["message"]


def test_repositories_and_prefixes_that_are_called_token(server: Server) -> None:
    """They are found where they always were."""
    for path in (
        "/v2/token/manifests/v1",
        "/token/v2/app/manifests/v1",
        "/token/v2/",
        "/v2/up.test/token/manifests/v1",
    ):
        response = server.get(path, server.token(ALICE))
        assert response.status in {200, 403, 404}, path
        assert "token" not in response.json


def test_the_url_for_clients_behind_a_proxy(server: Server) -> None:
    """It is what the trusted proxy says, and nothing but a host gets into the header."""
    forwarded = {"X_Forwarded_Proto": "https", "X_Forwarded_Host": "dockyard.example"}
    assert parameters(server.get("/v2/", **forwarded))["realm"] == "https://dockyard.example/token"
    injected = server.get("/v2/", X_Forwarded_Host='evil.test/",scope="x', Host="own.test")
    assert parameters(injected) == {"realm": "http://own.test/token", "service": "dockyard"}
    raw = server.deployment.send_raw(b'GET /v2/ HTTP/1.1\r\nHost: a"b,c\r\nConnection: close\r\n\r\n')
    with raw as stream:
        refused = _read(stream)
    assert refused.status in {400, 401}
    assert refused.header("WWW-Authenticate") in {None, 'Basic realm="dockyard"'}


def test_browsers_are_asked_for_a_login(server: Server) -> None:
    """They do not know tokens; those who have one may use it."""
    with contextlib.suppress(KeyError):
        assert server.get("/", WRONG).header("WWW-Authenticate") == 'Basic realm="dockyard"'
    assert server.statuses("/", server.token(ALICE)) == {200}
    assert server.statuses("/version", server.token()) == {200}


def test_decisions_are_those_about_the_login(server: Server) -> None:
    """In the request log and the audit log: the name of the login, and nothing of the token."""
    token = server.token(ALICE)
    audit = server.users.with_name("audit")
    path = "/v2/up.test/team/audited/manifests/v1"
    server.get(path, token)

    def entries() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in audit.read_text().splitlines()]
        return [line for line in lines if line.get("repository") == "up.test/team/audited"]

    eventually(entries, "the decision is logged")
    assert (entries()[0]["who"], entries()[0]["source"], entries()[0]["verdict"]) == ("alice", "htpasswd", "allowed")
    log = server.deployment.dockyard.log

    def request_lines() -> list[str]:
        return [
            line for line in log.read_text().splitlines() if "name=up.test/team/audited" in line and "user=" in line
        ]

    line = eventually(request_lines, "the request is logged")[0]
    assert "user=alice" in line
    assert any(json.loads(line)["kind"] == "token" for line in audit.read_text().splitlines())


def test_nothing_secret_is_logged(server: Server) -> None:
    """Neither logins in headers and forms nor tokens, with bodies in the log; in any encoding."""
    header, form = server.token(ALICE), {"grant_type": "password", "username": "alice", "password": PASSWORD}
    tokens = [header.split()[1], server.post(form).json["token"], server.token(BOB).split()[1]]
    tokens.append(server.token(f"Bearer {job('acme/app')}").split()[1])
    server.post(form | {"password": "canary-form-wrong"}, **{"X-Forwarded-For": "203.0.113.80"})
    server.post(form | {"password": "canary-form-length"}, **{"Content-Length": "99999"})
    server.post(form | {"password": "canary-form-path"}, "/%74oken")
    for token in tokens:
        server.get(CLOSED, f"Bearer {token}")
        server.get(CLOSED, f"Bearer {token}x")
    assert server.get("/v2/up.test/team/last/manifests/v1", header).status == 404
    log = server.deployment.dockyard.log
    eventually(lambda: "team/last" in log.read_text(), "all is logged")
    texts = [log.read_text(), server.users.with_name("audit").read_text(), server.get("/metrics").body.decode()]
    texts += [path.read_text("latin-1") for path in server.deployment.dockyard.storage.rglob("*") if path.is_file()]
    secrets = [
        PASSWORD,
        quote(PASSWORD),
        "canary-form",
        "canary-wrong",
        base64.b64encode(b"alice:canary")[:12].decode(),
    ]
    for text in texts:
        for secret in [*secrets, *(token[:40] for token in tokens), job("acme/app").rpartition(".")[0]]:
            assert secret not in text


def test_a_removed_user_is_out_at_once(tmp_path: Path) -> None:
    """So is one with another password, whose tokens were made before."""
    with open_server(tmp_path) as server:
        alice, bob = server.token(ALICE), server.token(BOB)
        assert server.statuses(CLOSED, alice) == {200}
        write_htpasswd(server.users, {"bob": "changed"})
        assert server.statuses(CLOSED, alice) == server.statuses(OPEN, alice) == {401}
        assert server.statuses(OPEN, bob) == {401}
        assert server.get("/token", ALICE).status == 401


def test_tokens_of_other_starts(tmp_path: Path) -> None:
    """With a key file they are valid at all servers that have it; without one, clients get 401 and a new token."""
    (tmp_path / "key").write_text("k" * 64)
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    with open_server(tmp_path / "a", workers=1, token_key_file=str(tmp_path / "key")) as server:
        kept = server.token(ALICE)
        assert server.get(CLOSED, kept).status == 200
    with open_server(tmp_path / "b", workers=1, token_key_file=str(tmp_path / "key")) as server:
        assert server.get(CLOSED, kept).status == 200
    with open_server(tmp_path / "c", workers=1) as server:
        refused = server.get(CLOSED, kept)
        assert refused.status == 401
        assert parameters(refused)["error"] == "invalid_token"
        assert server.get(CLOSED, server.token(ALICE)).status == 200


def test_tokens_outlive_a_reload(tmp_path: Path) -> None:
    """New workers have the key of the old ones."""
    with open_server(tmp_path) as server:
        token = server.token(ALICE)
        dockyard = server.deployment.dockyard
        before = set(dockyard.worker_pids())
        os.kill(dockyard.pid, signal.SIGHUP)
        eventually(lambda: len(dockyard.worker_pids()) == 2 and not before & set(dockyard.worker_pids()), "all are new")
        assert server.statuses(CLOSED, token) == {200}


def test_a_dry_run_gives_tokens_to_all(tmp_path: Path) -> None:
    """A wrong login is as none; but a token that is not valid is replaced by its client."""
    with open_server(tmp_path, dry_run=True) as server:
        for login in (None, ALICE, WRONG, "Basic !"):
            assert server.statuses(CLOSED, server.token(login)) == {200}
        refused = server.get(CLOSED, "Bearer dockyard.x")
        assert (refused.status, parameters(refused)["error"]) == (401, "invalid_token")


def test_without_the_setting_nothing_is_there(tmp_path: Path) -> None:
    """`/token` is no path, and what looks like a token is a wrong login."""
    with open_server(tmp_path, challenge="basic") as server:
        assert server.get("/token").status == 404
        assert server.post({"grant_type": "password"}).status == 405
        refused = server.get(OPEN, "Bearer dockyard.x")
        assert refused.status == 401
        assert refused.header("WWW-Authenticate") == 'Basic realm="dockyard"'
        assert server.get("/v2/").status == 200


# The upstream decides


@attrs.define
class Site(Server):
    """A Dockyard whose upstreams decide, and their accounts."""

    accounts: FakeAccounts


@contextlib.contextmanager
def open_site(directory: Path, prefixes: tuple[str, ...] = ("up.test",)) -> Iterator[Site]:
    """Start a server whose upstream has one account."""
    with FakeRegistry() as fake_registry:
        for repo in ("team/app", "public/app"):
            fake_registry.add_image(repo, "v1", [Synthetic(1000)])
        ann = Account("ann", "canary-ann", frozenset({"team/app"}))
        accounts = FakeAccounts(fake_registry, "scoped", [ann], ["public/app"])
        with open_deployment(
            fake_registry,
            directory,
            workers=2,
            upstreams=[upstream(prefix, fake_registry.url, access="upstream") for prefix in prefixes],
            access={"challenge": "bearer"},
        ) as deployment:
            yield Site(deployment, directory / "none", accounts)


ANN = basic("ann", "canary-ann")
TEAM, PUBLIC = "/v2/up.test/team/app/manifests/v1", "/v2/up.test/public/app/manifests/v1"


def test_an_upstream_decides_about_tokens(tmp_path: Path) -> None:
    """A wrong login gets none; with one, clients get what the upstream gives to their login."""
    with open_site(tmp_path) as site:
        assert site.get("/v2/").status == 401
        assert site.get("/token", basic("ann", "wrong")).status == 401
        assert site.statuses("/v2/", site.token()) == {200}
        assert site.statuses(PUBLIC, site.token()) == {200}
        assert site.statuses(TEAM, site.token()) == {401}
        assert site.statuses(TEAM, site.token(ANN)) == {200}
        assert site.statuses(TEAM, ANN) == {200}
        token = site.token(ANN)
        sent = [exchange.request.header("Authorization") or "" for exchange in site.deployment.fake_registry.received()]
        assert not any("dockyard." in text for text in sent)
        assert site.statuses(TEAM, basic("any", token.split()[1])) == {401}
        assert site.statuses(PUBLIC, f"Bearer {token.split()[1]}x") == {401}
        received = site.deployment.fake_registry.received()
        assert not any(token.split()[1][:40] in str(exchange.request) for exchange in received)


def test_with_several_upstreams_the_use_of_a_token_decides(tmp_path: Path) -> None:
    """Nobody knows for which one the login is."""
    with open_site(tmp_path, ("up.test", "other.test")) as site:
        assert site.statuses(TEAM, site.token(ANN)) == {200}
        wrong = site.token(basic("ann", "wrong"))
        assert site.statuses(TEAM, wrong) == site.statuses(PUBLIC, wrong) == {401}


def test_tokens_while_the_upstream_is_down(tmp_path: Path) -> None:
    """Those who were admitted still are, and others get a token, with which they get nothing."""
    with open_site(tmp_path) as site:
        token = site.token(ANN)
        assert site.statuses(TEAM, token) == site.statuses(PUBLIC, site.token()) == {200}
        site.deployment.fake_registry.listener.close()
        site.deployment.fake_registry.listener.drop_connections()
        assert site.statuses(TEAM, site.token(ANN)) == {200}
        assert site.statuses(PUBLIC, site.token()) == {200}
        other = site.token(basic("eve", "x"))
        assert site.statuses(TEAM, other) == {503}


# Dockyard as the client of a Dockyard


@contextlib.contextmanager
def open_outer(directory: Path, inner: Server, **more: Any) -> Iterator[Deployment]:
    """Start a Dockyard whose upstream is another one, which gives access tokens."""
    registry = f"{inner.deployment.dockyard.url}/up.test"
    fake_registry = inner.deployment.fake_registry
    upstreams = [upstream("inner.test", registry, **more)]
    access = {"challenge": "bearer"} if more.get("access") else {}
    with open_deployment(fake_registry, directory, upstreams=upstreams, access=access) as deployment:
        yield deployment


@pytest.mark.parametrize(
    ("auth", "closed"),
    [
        ({"type": "basic", "username": "alice", "password": PASSWORD}, 200),
        ({"type": "bearer", "password": job("acme/app")}, 200),
        ({"type": "anonymous"}, 404),
    ],
)
def test_a_dockyard_pulls_from_a_dockyard(server: Server, tmp_path: Path, auth: Mapping[str, str], closed: int) -> None:
    """With the login in its settings, and without one what is for everybody."""
    with open_outer(tmp_path, server, auth=auth) as outer:
        assert outer.get("/v2/inner.test/open/app/manifests/v1").status == 200
        assert outer.get("/v2/inner.test/team/app/manifests/v1").status == closed


def test_a_dockyard_asks_a_dockyard_whom_it_admits(server: Server, tmp_path: Path) -> None:
    """Tokens of the outer one never reach the inner one, which gives its own for the login in them."""
    with open_outer(tmp_path, server, access="upstream") as deployment:
        outer = Server(deployment, tmp_path)
        opened, closed = (f"/v2/inner.test/{name}/app/manifests/v1" for name in ("open", "team"))
        assert outer.statuses(opened, outer.token()) == {200}
        assert outer.statuses(closed, outer.token()) == {401}
        assert outer.get("/token", basic("alice", "canary-outer")).status == 401
        assert outer.statuses(closed, outer.token(ALICE)) == {200}
        assert outer.statuses(closed, outer.token(BOB)) == {403}
        assert outer.statuses(closed, server.token(ALICE)) == {401}


def pull(server: Server, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run `dockyard pull`."""
    return subprocess.run(
        [sys.executable, "-m", "dockyard", "pull", "--server", server.deployment.dockyard.url, *words],
        env={"PATH": "/usr/bin:/bin"},
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=EVENT_TIMEOUT_S,
        check=False,
    )


def test_dockyard_pull(server: Server) -> None:
    """It sends its login itself, and needs none for what is for everybody."""
    login = ("--username", "alice", "--password-stdin")
    done = pull(server, "up.test/open/app:v1")
    assert done.returncode == 0, done.stderr
    done = pull(server, *login, "up.test/team/app:v1", stdin=PASSWORD)
    assert done.returncode == 0, done.stderr
    assert pull(server, "up.test/team/app:v1").returncode != 0
    refused = pull(server, *login, "up.test/open/app:v1", stdin="canary-pull")
    assert refused.returncode != 0
    assert "canary" not in refused.stdout + refused.stderr
