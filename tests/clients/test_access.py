"""Real clients pull from a Dockyard where access is restricted: with a right, a wrong and without a login."""

import contextlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from tests.clients.access_sources import PASSWORD, REFUSED, USER, Source, access, content, fetched, push
from tests.clients.login_clients import LOGIN_CLIENTS, LoginClient
from tests.support.artifact_clients import Helm
from tests.support.distribution import DistributionRegistry
from tests.support.dockyard import Dockyard, docker_hub, running
from tests.support.image_clients import ClientError
from tests.support.programs import Programs

pytestmark = pytest.mark.clients

CHALLENGES = ["basic", "bearer"]
SOURCES = ["htpasswd", "token", "upstream"]
# Podman has the library of Skopeo; both versions of containerd have both kinds of names, but for these.
SAME_MECHANISM = {"podman", "cri", "cri-2-closed-node"}


def is_repetition(test: str, params: Mapping[str, Any]) -> bool:
    """Each client with each challenge; the sources take turns."""
    client, challenge, source = (params.get(name) for name in ("make_client", "challenge", "source"))
    if client in SAME_MECHANISM or (test == "test_a_restart_between_two_pulls" and client in {"skopeo", "oras", "ctr"}):
        return True
    turn = ([*LOGIN_CLIENTS].index(client) if client else 0) + (CHALLENGES.index(challenge) if challenge else 0)
    return source is not None and source != SOURCES[turn % len(SOURCES)]


@pytest.fixture(scope="module")
def htpasswd(
    registry: DistributionRegistry, challenge: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Source]:
    """A user of the htpasswd file."""
    directory = tmp_path_factory.mktemp("htpasswd")
    settings = access(directory / "access", {"allow": True, "who": [USER]}, challenge=challenge)
    with running(Dockyard(directory, [docker_hub(registry)], settings=settings)) as dockyard:
        yield Source(dockyard, registry, (USER, PASSWORD), (USER, "wrong-password"))


@pytest.fixture(scope="module")
def token(registry: DistributionRegistry, challenge: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    """A token as the password, with any user name; the wrong one is signed by another key."""
    directory = tmp_path_factory.mktemp("token")
    keys = [rsa.generate_private_key(65537, 2048) for _ in range(2)]
    jwk = RSAAlgorithm.to_jwk(keys[0].public_key(), as_dict=True) | {"kid": "1", "alg": "RS256", "use": "sig"}
    (directory / "jwks.json").write_text(json.dumps({"keys": [jwk]}))
    issuer = {"name": "ci", "issuer": "https://ci.test", "audience": "dockyard", "jwks": str(directory / "jwks.json")}
    rules = [{"allow": True, "who": ["ci:project:team-a:*"]}]
    now = int(time.time())
    claims = {"iss": "https://ci.test", "aud": "dockyard", "sub": "project:team-a:main", "iat": now, "exp": now + 3600}
    right, wrong = (jwt.encode(claims, key, "RS256", headers={"kid": "1"}) for key in keys)
    settings = {"access": {"jwt": [issuer], "rules": rules, "challenge": challenge}}
    with running(Dockyard(directory, [docker_hub(registry)], settings=settings)) as dockyard:
        yield Source(dockyard, registry, ("any", right), ("any", wrong))


@pytest.fixture(scope="module")
def upstream(programs: Programs, challenge: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    """A user of the upstream, which is a registry with an htpasswd file and decides itself."""
    directory = tmp_path_factory.mktemp("upstream")
    users = {"tests": secrets.token_hex(8), USER: PASSWORD}
    registry = DistributionRegistry(programs.need("registry"), tmp_path_factory.mktemp("private"), users=users)
    with contextlib.closing(registry):
        registry.start()
        decides = {**docker_hub(registry), "access": "upstream"}
        with running(Dockyard(directory, [decides], settings={"access": {"challenge": challenge}})) as dockyard:
            yield Source(dockyard, registry, (USER, PASSWORD), (USER, "wrong-password"))


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, challenge: str) -> Source:
    """Each source of logins, with each challenge."""
    assert challenge
    found: Source = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def mixed(
    registry: DistributionRegistry, challenge: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Dockyard]:
    """A Dockyard that gives public/ to everybody, and private/ to one user."""
    directory = tmp_path_factory.mktemp("mixed")
    settings = access(
        directory / "access",
        {"allow": True, "repositories": ["docker.io/public/**"]},
        {"allow": True, "repositories": ["docker.io/private/**"], "who": [USER]},
        challenge=challenge,
    )
    with running(Dockyard(directory, [docker_hub(registry)], settings=settings)) as dockyard:
        yield dockyard


@pytest.fixture(params=LOGIN_CLIENTS)
def make_client(request: pytest.FixtureRequest) -> Iterator[Callable[[Dockyard], LoginClient]]:
    """A function that returns a client without images and logins."""
    made: list[LoginClient] = []

    def make(dockyard: Dockyard) -> LoginClient:
        client = LOGIN_CLIENTS[request.param](dockyard, request)
        client.reset()
        made.append(client)
        return client

    yield make
    for client in made:
        client.reset()


def test_a_login_is_needed_where_nothing_is_for_everybody(
    make_client: Callable[[Dockyard], LoginClient], source: Source
) -> None:
    """Without a login, and with a wrong one, a client gets nothing; with the right one each blob is fetched once.

    If Dockyard decides, requests that it denies do not reach the upstream; if the upstream decides, it denies them too.
    """
    image = push(source.registry, "team")
    client = make_client(source.dockyard)
    with pytest.raises(ClientError, match=REFUSED):
        client.pull(image.repository)
    client.reset()
    if client.verifies_login:
        with pytest.raises(ClientError, match=REFUSED):
            client.log_in(*source.wrong)
    else:
        client.log_in(*source.wrong)
        with pytest.raises(ClientError, match=REFUSED):
            client.pull(image.repository)
    if source.dockyard.settings["upstreams"][0].get("access") == "upstream":
        assert content(source.registry) == []
    else:
        assert source.registry.requests() == []
    client.reset()
    client.log_in(*source.right)
    assert client.pull(image.repository) == image.digest
    assert fetched(source.registry, image) == sorted(image.blobs)


def test_a_cached_image_needs_a_login_too(make_client: Callable[[Dockyard], LoginClient], source: Source) -> None:
    """What one client has pulled is for another one only with a login; it is not fetched again."""
    image = push(source.registry, "team")
    client = make_client(source.dockyard)
    client.log_in(*source.right)
    client.pull(image.repository)
    source.registry.clear_requests()
    client.reset()
    with pytest.raises(ClientError, match=REFUSED):
        client.pull(image.repository)
    client.reset()
    client.log_in(*source.right)
    assert client.pull(image.repository) == image.digest
    assert fetched(source.registry, image) == []


@pytest.fixture(scope="module", params=[("127.0.0.0/8", True), ("10.0.0.0/8", False)], ids=["ours", "another"])
def network(
    request: pytest.FixtureRequest, registry: DistributionRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Dockyard, bool]]:
    """A Dockyard that gives everything to one network, and whether the clients are in it."""
    addresses, is_ours = request.param
    networks = [{"name": "nodes", "addresses": [addresses]}]
    settings = {"access": {"networks": networks, "rules": [{"allow": True, "who": ["network:nodes"]}]}}
    directory = tmp_path_factory.mktemp("network")
    with running(Dockyard(directory, [docker_hub(registry)], settings=settings)) as dockyard:
        yield dockyard, is_ours


def test_a_network_needs_no_login(
    make_client: Callable[[Dockyard], LoginClient], registry: DistributionRegistry, network: tuple[Dockyard, bool]
) -> None:
    """Clients in the network get the image; others nothing, and nobody asks them for a login."""
    image = push(registry, "team")
    dockyard, is_allowed = network
    client = make_client(dockyard)
    if is_allowed:
        assert client.pull(image.repository) == image.digest
        assert fetched(registry, image) == sorted(image.blobs)
    else:
        with pytest.raises(ClientError, match=REFUSED):
            client.pull(image.repository)
        assert registry.requests() == []


def test_public_images_need_no_login_beside_private_ones(
    make_client: Callable[[Dockyard], LoginClient], mixed: Dockyard, registry: DistributionRegistry
) -> None:
    """Without a login a client gets the public image only; nothing of the private one reaches the upstream."""
    public = push(registry, "public")
    client = make_client(mixed)
    assert client.pull(public.repository) == public.digest
    assert fetched(registry, public) == sorted(public.blobs)
    private = push(registry, "private")
    with pytest.raises(ClientError, match=REFUSED):
        client.pull(private.repository)
    assert registry.requests() == []


def test_private_images_can_be_pulled_beside_public_ones(
    make_client: Callable[[Dockyard], LoginClient],
    mixed: Dockyard,
    challenge: str,
    registry: DistributionRegistry,
    request: pytest.FixtureRequest,
) -> None:
    """With a login a client gets the private image; but with Basic, Docker's classic store sends none after 200."""
    private = push(registry, "private")
    client = make_client(mixed)
    client.log_in(USER, PASSWORD)
    if request.node.callspec.params["make_client"] == "docker" and challenge == "basic":
        with pytest.raises(ClientError, match="unauthorized: this needs a login"):
            client.pull(private.repository)
        assert registry.requests() == []
    else:
        assert client.pull(private.repository) == private.digest
        assert fetched(registry, private) == sorted(private.blobs)


def test_a_wrong_login_beside_public_images(
    make_client: Callable[[Dockyard], LoginClient],
    mixed: Dockyard,
    challenge: str,
    registry: DistributionRegistry,
    request: pytest.FixtureRequest,
) -> None:
    """With it nothing private is pulled. A login is only verified by all clients if `/v2/` asks for one."""
    private = push(registry, "private")
    client = make_client(mixed)
    name = request.node.callspec.params["make_client"]
    if client.verifies_login and (challenge == "bearer" or name in {"podman", "skopeo"}):
        with pytest.raises(ClientError, match=REFUSED):
            client.log_in(USER, "wrong-password")
    else:
        client.log_in(USER, "wrong-password")
    with pytest.raises(ClientError, match=REFUSED):
        client.pull(private.repository)
    assert registry.requests() == []


@pytest.fixture(scope="module")
def deciding(
    registry: DistributionRegistry, challenge: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Dockyard]:
    """A Dockyard whose upstream decides, and gives everything to everybody."""
    decides = {**docker_hub(registry), "access": "upstream"}
    settings = {"access": {"challenge": challenge}}
    with running(Dockyard(tmp_path_factory.mktemp("deciding"), [decides], settings=settings)) as dockyard:
        yield dockyard


def test_public_images_of_an_upstream_that_decides(
    make_client: Callable[[Dockyard], LoginClient],
    registry: DistributionRegistry,
    deciding: Dockyard,
    challenge: str,
    request: pytest.FixtureRequest,
) -> None:
    """What the upstream gives to everybody needs no login, but for Docker's classic store with Basic."""
    image = push(registry, "team")
    client = make_client(deciding)
    if request.node.callspec.params["make_client"] == "docker" and challenge == "basic":
        with pytest.raises(ClientError, match="no basic auth credentials"):
            client.pull(image.repository)
        assert registry.requests() == []
    else:
        assert client.pull(image.repository) == image.digest
        assert fetched(registry, image) == sorted(image.blobs)


def test_a_restart_between_two_pulls(
    make_client: Callable[[Dockyard], LoginClient],
    registry: DistributionRegistry,
    start_dockyard: Callable[..., Dockyard],
    tmp_path: Path,
) -> None:
    """Access tokens of the former start are not valid any more: clients get others."""
    settings = access(tmp_path / "access", {"allow": True, "who": [USER]}, challenge="bearer")
    dockyard = start_dockyard([docker_hub(registry)], settings=settings)
    client = make_client(dockyard)
    client.log_in(USER, PASSWORD)
    for _ in range(2):
        image = push(registry, "team")
        assert client.pull(image.repository) == image.digest
        dockyard.stop()
        dockyard.start()


def test_helm_logs_in(source: Source, programs: Programs, tmp_path: Path) -> None:
    """A chart is pulled with the right login only."""
    helm = Helm(programs.need("helm"), tmp_path)
    if source.registry.needs_login:
        helm.log_in(source.registry.host, *source.right)
    name = f"chart-{secrets.token_hex(4)}"
    chart = helm.push(f"{source.registry.host}/charts", name, "1.0.0")
    helm.forget_logins()
    charts = f"{source.dockyard.host}/docker.io/charts"
    with pytest.raises(ClientError, match=REFUSED):
        helm.pull(charts, name, "1.0.0")
    with pytest.raises(ClientError, match=REFUSED):
        helm.log_in(source.dockyard.host, *source.wrong)
    helm.log_in(source.dockyard.host, *source.right)
    assert helm.pull(charts, name, "1.0.0") == chart
