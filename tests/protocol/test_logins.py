"""Logins of clients at a running server: passwords, tokens as issuers make them, and addresses behind proxies.

Everybody may pull what is below `up.test/open`; the rest needs a login, or an address in the network `office`. A wrong
login gets nothing, neither there nor where none is needed.
"""

import base64
import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.support.bodies import Synthetic
from tests.support.busy_machine import is_within
from tests.support.deployment import Deployment, eventually, open_deployment, upstream
from tests.support.fake_registry import FakeRegistry
from tests.support.htpasswd import write_htpasswd
from tests.support.http_client import Response
from tests.support.raw_server import RawConnection, RawServer, response
from tests.support.token_issuer import TokenIssuer, key_set, sign_with_public_key

CLUSTER = TokenIssuer("https://kubernetes.default.svc.cluster.local", "dockyard", kid="cluster-1")
GITHUB = TokenIssuer("https://token.actions.githubusercontent.com", "dockyard", kid="github-1", number=1)
STRANGER = TokenIssuer("https://token.actions.githubusercontent.com", "dockyard", kid="github-1", number=2)
OTHERS = TokenIssuer("https://auth.test", "registry", number=3)
PASSWORD = "canary-2b9e"
OPEN, CLOSED = "/v2/up.test/open/app/manifests/v1", "/v2/up.test/team/app/manifests/v1"
CHALLENGE = 'Basic realm="dockyard"'
RULES = [
    {"allow": True, "repositories": ["up.test/open/**"]},
    {"allow": True, "who": ["alice", "group:robots", "github:repo:acme/*", "network:office"]},
]


def basic(username: str, password: str) -> str:
    """The header of a login."""
    return f"Basic {base64.b64encode(f'{username}:{password}'.encode()).decode()}"


@attrs.define
class Server:
    """A server with users, tokens of a cluster whose keys are at a URL, and of GitHub, whose keys are in a file."""

    deployment: Deployment
    users: Path
    keys: Path
    key_server: RawServer
    cluster_keys: list[bytes]

    def get(self, path: str, login: str | None = None, **headers: str) -> Response:
        """Send a request on a connection of its own, so that each worker gets some."""
        return self.deployment.get(path, **headers, **({} if login is None else {"Authorization": login}))

    def statuses(self, path: str, login: str | None = None, **headers: str) -> set[int]:
        """The statuses of some responses, of all workers."""
        return {self.get(path, login, **headers).status for _ in range(6)}


@contextlib.contextmanager
def open_server(directory: Path, **access: Any) -> Iterator[Server]:
    """Start a server with two workers."""
    users, keys, token = directory / "htpasswd", directory / "github.json", directory / "token"
    write_htpasswd(users, {"alice": PASSWORD, "bob": "other"})
    keys.write_bytes(key_set(GITHUB.jwk()))
    token.write_text("canary-token\n")
    cluster_keys = [key_set(CLUSTER.jwk())]

    def serve(connection: RawConnection) -> None:
        while connection.receive_request():
            connection.send(response(cluster_keys[-1]) if cluster_keys else response(b"", status=503))

    with FakeRegistry() as fake_registry, RawServer(serve) as key_server:
        for repo in ("open/app", "team/app"):
            fake_registry.add_image(repo, "v1", [Synthetic(1000)])
        settings: dict[str, Any] = {
            "htpasswd": str(users),
            "networks": [{"name": "office", "addresses": ["192.0.2.0/24", "2001:db8::/32"]}],
            "groups": [{"name": "robots", "members": ["cluster:system:serviceaccount:prod:*"]}],
            "jwt": [
                {
                    "name": "cluster",
                    "issuer": CLUSTER.url,
                    "audience": CLUSTER.audience,
                    "jwks": f"{key_server.url}/openid/v1/jwks",
                    "token_file": str(token),
                },
                {"name": "github", "issuer": GITHUB.url, "audience": GITHUB.audience, "jwks": str(keys)},
            ],
            "rules": RULES,
        }
        with open_deployment(
            fake_registry,
            directory / "deployment",
            workers=2,
            upstreams=[upstream("up.test", fake_registry.url)],
            access=settings | access,
            server={"trusted_proxies": ["127.0.0.1"]},
        ) as deployment:
            yield Server(deployment, users, keys, key_server, cluster_keys)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for tests that change nothing."""
    with open_server(tmp_path_factory.mktemp("logins")) as server:
        yield server


def service_account(name: str, **claims: object) -> str:
    """The token of a service account."""
    return CLUSTER.sign(CLUSTER.claims(sub=f"system:serviceaccount:{name}", **claims), CLUSTER.header(typ=None))


def job(repository: str, issuer: TokenIssuer = GITHUB, **claims: object) -> str:
    """The token of a job."""
    return issuer.sign(issuer.claims(sub=f"repo:{repository}:ref:refs/heads/main", **claims))


def forms(token: str) -> list[str]:
    """The headers in which clients send a token."""
    return [f"Bearer {token}", basic("serviceaccount", token), basic("alice", token)]


def test_passwords(server: Server) -> None:
    """Right ones have the rights of their user, and wrong ones none at all."""
    assert server.statuses(OPEN) == {200}
    assert server.statuses(CLOSED) == {401}
    assert server.statuses(CLOSED, basic("alice", PASSWORD)) == {200}
    assert server.statuses(CLOSED, basic("bob", "other")) == {403}
    assert server.statuses(OPEN, basic("bob", "other")) == {200}
    for path in (OPEN, CLOSED, "/v2/"):
        for login in (basic("alice", "x"), basic("alice", ""), basic("carol", PASSWORD), "Basic !", "Digest x", ""):
            refused = server.get(path, login)
            assert refused.status == 401, (path, login)
            assert refused.header("WWW-Authenticate") == CHALLENGE
            assert refused.json["errors"][0]["code"] == "UNAUTHORIZED"


def test_tokens_in_each_form(server: Server) -> None:
    """As a bearer token, and as the password of any user; the name in it has the rights."""
    for token, status in (
        (service_account("prod:puller"), 200),
        (service_account("test:puller"), 403),
        (job("acme/app"), 200),
        (job("evil/app"), 403),
        (job("acme-evil/app"), 403),
    ):
        for login in forms(token):
            assert server.statuses(CLOSED, login) == {status}
            assert server.statuses(OPEN, login) == {200}
            assert server.get("/v2/", login).status == 200


def test_wrong_tokens_get_nothing(server: Server) -> None:
    """Also where no login is needed; and each worker says so."""
    now = int(time.time())
    for token in (
        job("acme/app", STRANGER),
        job("acme/app", exp=now - 300),
        job("acme/app", exp=None),
        job("acme/app", nbf=now + 300),
        job("acme/app", aud="other"),
        GITHUB.sign(None, GITHUB.header(alg="none")),
        GITHUB.sign().rpartition(".")[0] + ".",
        sign_with_public_key(GITHUB, "pem"),
        CLUSTER.sign(CLUSTER.claims(iss=GITHUB.url)),
        service_account("prod:pul\nler"),
        OTHERS.sign(),
    ):
        for login in forms(token):
            for path in (OPEN, CLOSED, "/v2/"):
                refused = server.get(path, login)
                assert refused.status == 401
                assert token not in str(refused.headers) + refused.body.decode()


def test_the_keys_are_requested_with_the_token_of_the_file(server: Server) -> None:
    """Once by each worker, however many tokens there are."""
    for number in range(10):
        assert server.statuses(CLOSED, f"Bearer {service_account(f'prod:p{number}')}") == {200}
    assert 1 <= len(server.key_server.heads) <= 2
    assert all(b"\r\nAuthorization: Bearer canary-token\r\n" in head for head in server.key_server.heads)


@pytest.mark.parametrize(
    ("forwarded", "status"),
    [
        ("192.0.2.7", 200),
        ("2001:db8::7", 200),
        ("::ffff:192.0.2.7", 200),
        ("198.51.100.1, 192.0.2.7", 200),
        ("198.51.100.1, 192.0.2.7, 127.0.0.1", 200),
        ("198.51.100.1", 401),
        ("192.0.2.7, 198.51.100.1", 401),
        ("192.0.2.7, unknown", 401),
        ("192.0.2.7, garbage", 401),
        ("", 401),
    ],
)
def test_an_address_behind_a_proxy(server: Server, forwarded: str, status: int) -> None:
    """The right-most one that is no proxy. A wrong login is wrong from everywhere."""
    assert server.statuses(CLOSED, X_Forwarded_For=forwarded) == {status}
    assert server.statuses(CLOSED, Forwarded=f'for="{forwarded}"') == {401}
    assert server.get(CLOSED, basic("alice", "x"), X_Forwarded_For=forwarded).status in {401, 429}


def test_nothing_secret_is_in_the_log(server: Server) -> None:
    """Neither passwords nor tokens, right or wrong."""
    token = job("acme/app", exp=1)
    server.get(CLOSED, f"Bearer {token}")
    server.get(CLOSED, basic("alice", f"{PASSWORD}-wrong"))
    log = server.deployment.dockyard.log
    eventually(lambda: "it has expired" in log.read_text(), "the refused token is logged")
    text = log.read_text()
    for secret in (PASSWORD, *token.split("."), *basic("alice", PASSWORD).split()[1:], "canary-token"):
        assert secret not in text


def test_changed_files_hold_for_the_next_request(tmp_path: Path) -> None:
    """In each worker: a changed password, a removed user, other keys, and files that are gone."""
    with open_server(tmp_path) as server:
        alice, bob, token = basic("alice", PASSWORD), basic("bob", "other"), f"Bearer {job('acme/app')}"
        new = TokenIssuer(GITHUB.url, kid="github-2", number=4)
        assert server.statuses(CLOSED, alice) == server.statuses(CLOSED, token) == {200}
        assert server.statuses(OPEN, bob) == {200}
        write_htpasswd(server.users, {"alice": "new", "carol": "x"})
        assert server.statuses(CLOSED, alice) == {401}
        assert server.statuses(OPEN, bob) == {401}
        assert server.statuses(CLOSED, basic("alice", "new")) == {200}
        server.keys.write_bytes(key_set(new.jwk()))
        assert server.statuses(CLOSED, token) == {401}
        assert server.statuses(CLOSED, f"Bearer {job('acme/app', new)}") == {200}
        server.users.unlink()
        server.keys.unlink()
        assert server.statuses(CLOSED, basic("alice", "new")) == {401}
        assert server.statuses(CLOSED, f"Bearer {job('acme/app', new)}") == {503}
        assert server.statuses(OPEN) == {200}
        write_htpasswd(server.users, {"alice": PASSWORD})
        assert server.statuses(CLOSED, alice) == {200}


def test_a_url_without_keys(tmp_path: Path) -> None:
    """Its tokens are neither right nor wrong until it has some, and other logins do not notice."""
    with open_server(tmp_path) as server:
        keys = server.cluster_keys.pop()
        login = f"Bearer {service_account('prod:puller')}"
        refused = server.get(CLOSED, login)
        assert refused.status == 503
        assert refused.header("Retry-After") is not None
        assert server.statuses(CLOSED, basic("alice", PASSWORD)) == {200}
        assert server.statuses(CLOSED, f"Bearer {job('acme/app')}") == {200}
        server.cluster_keys.append(keys)
        eventually(lambda: server.statuses(CLOSED, login) == {200}, "the keys are read")


def test_a_guessing_address_is_slowed_and_others_are_not(tmp_path: Path) -> None:
    """Hundreds of guesses at once are refused before they cost anything; who was right lately goes on."""
    with open_server(tmp_path) as server:
        write_htpasswd(server.users, {"alice": PASSWORD}, cost=10)
        alice = basic("alice", PASSWORD)
        assert server.statuses(CLOSED, alice, X_Forwarded_For="203.0.113.1") == {200}

        def guess(number: int) -> int:
            return server.get(CLOSED, basic("alice", f"x{number}"), X_Forwarded_For="203.0.113.1").status

        with ThreadPoolExecutor(100) as pool:
            guesses = [pool.submit(guess, number) for number in range(300)]
            took_s = [server.get(CLOSED, alice, X_Forwarded_For="203.0.113.1").took_s for _ in range(50)]
            opened = [server.get(OPEN) for _ in range(50)]
            assert server.get(CLOSED, basic("alice", f"{PASSWORD}x"), X_Forwarded_For="203.0.113.2").status == 401
            statuses = [each.result() for each in guesses]
        assert {response.status for response in opened} == {200}
        assert set(statuses) == {401, 429}
        assert statuses.count(429) > 200
        assert is_within(max(took_s), 1.0, control_s=max(response.took_s for response in opened))
        assert server.statuses(CLOSED, alice, X_Forwarded_For="203.0.113.1") == {200}
