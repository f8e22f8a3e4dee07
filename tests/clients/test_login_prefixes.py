"""Logins by path in `config.json` or `auth.json`: which of several logins each client sends. The table of CLIENTS.md.

One user may pull what is in one group of repositories, another one the rest: neither may pull what is the other's.
"""

import base64
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from dockyard.access.passwords import hash_password
from tests.clients.access_sources import REFUSED
from tests.support.artifact_clients import Helm, Oras
from tests.support.distribution import DistributionRegistry
from tests.support.dockyard import Dockyard, docker_hub, running
from tests.support.image_clients import ClientError, Crane, DockerDaemon, Podman, Skopeo
from tests.support.images import push_docker
from tests.support.paths import ROOT
from tests.support.programs import Programs

pytestmark = pytest.mark.clients

PREFIX = "ghcr.io"
TEAM, READER = "team", "reader"
PASSWORDS = {TEAM: "password-of-the-team", READER: "password-of-the-reader"}

KEYS = {  # in the page
    "the address, and any path that begins the name: `dockyard:5000/ghcr.io/my-org`": "prefix",
    "the address, and the whole name: `dockyard:5000/ghcr.io/my-org/app`": "repository",
    "the address only": "none",
}


def is_repetition(test: str, params: Mapping[str, Any]) -> bool:
    """Each client with one challenge, which take turns: which login a client sends does not depend on it."""
    client = params.get("client") or params.get("name")
    challenge = params.get("challenge")
    names = [name.lower() for name in CLIENTS]
    return challenge is not None and challenge != ("basic", "bearer")[names.index(str(client).lower()) % 2]


@pytest.fixture(scope="module")
def dockyard(
    registry: DistributionRegistry, challenge: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Dockyard]:
    """A Dockyard where `team/` is for one user, and everything else for another."""
    directory = tmp_path_factory.mktemp("prefixes")
    lines = [f"{user}:{hash_password(password, 4)}\n" for user, password in PASSWORDS.items()]
    (directory / "htpasswd").write_text("".join(lines))
    rules = [
        {"allow": True, "repositories": [f"{PREFIX}/team/**"], "who": [TEAM]},
        {"allow": False, "repositories": [f"{PREFIX}/team/**"]},
        {"allow": True, "who": [READER]},
    ]
    settings = {"access": {"htpasswd": str(directory / "htpasswd"), "rules": rules, "challenge": challenge}}
    upstream = {**docker_hub(registry), "prefix": PREFIX}
    with running(Dockyard(directory / "dockyard", [upstream], settings=settings)) as dockyard:
        yield dockyard


@attrs.frozen
class KeyedClient:
    """A client with a file of logins. `pull` pulls an image (for Helm: a chart) whose name is given; `wipe` forgets it.

    `paths`: which keys with a path it knows: `prefix`: any that begins the name of an image; `repository`: only the
    whole name without its tag; `none`: only hosts.
    """

    file: Path
    pull: Callable[[str], object]
    paths: str
    push: Callable[[DistributionRegistry, str], object]
    wipe: Callable[[], None] = lambda: None


def push_image(registry: DistributionRegistry, repository: str) -> None:
    """Push an image."""
    push_docker(registry, repository, repository)


def docker(request: pytest.FixtureRequest) -> KeyedClient:
    """The docker CLI, which reads the logins and sends them to the daemon."""
    client: DockerDaemon = request.getfixturevalue("docker")
    return KeyedClient(client.directory / "config.json", client.pull, "none", push_image, client.wipe)


def podman(request: pytest.FixtureRequest) -> KeyedClient:
    """Podman, with auth.json."""
    client: Podman = request.getfixturevalue("podman")
    return KeyedClient(client.directory / "auth.json", client.pull, "prefix", push_image, client.wipe)


def skopeo(request: pytest.FixtureRequest) -> KeyedClient:
    """Skopeo, with auth.json."""
    client: Skopeo = request.getfixturevalue("skopeo")
    return KeyedClient(client.directory / "auth.json", client.pull, "prefix", push_image, client.wipe)


def crane(request: pytest.FixtureRequest) -> KeyedClient:
    """Crane."""
    client: Crane = request.getfixturevalue("crane")
    return KeyedClient(client.directory / "config.json", client.pull, "repository", push_image, client.wipe)


def oras(request: pytest.FixtureRequest) -> KeyedClient:
    """Oras."""
    client: Oras = request.getfixturevalue("oras")
    return KeyedClient(client.directory / "config.json", client.copy, "none", push_image)


def helm(request: pytest.FixtureRequest) -> KeyedClient:
    """Helm, with a chart; its file for logins has another place, and Docker's is read too."""
    programs: Programs = request.getfixturevalue("programs")
    client = Helm(programs.need("helm"), request.getfixturevalue("tmp_path"))

    def push(registry: DistributionRegistry, repository: str) -> None:
        parent, _, name = repository.rpartition("/")
        client.push(f"{registry.host}/{parent}", name, "1.0.0")

    def pull(reference: str) -> bytes:
        parent, _, name = reference.removesuffix(":latest").rpartition("/")
        return client.pull(parent, name, "1.0.0")

    return KeyedClient(client.directory / "config.json", pull, "none", push)


CLIENTS: dict[str, Callable[[pytest.FixtureRequest], KeyedClient]] = {
    "Docker": docker,
    "Podman": podman,
    "Skopeo": skopeo,
    "crane": crane,
    "oras": oras,
    "Helm": helm,
}


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> Iterator[KeyedClient]:
    """Each client, without images and logins."""
    made = CLIENTS[request.param](request)
    made.wipe()
    yield made
    made.wipe()
    made.file.unlink(missing_ok=True)
    (made.file.parent / "auth.json").write_text("{}")


def write_logins(file: Path, logins: dict[str, str]) -> None:
    """Write a file with the user for each key."""
    texts = {key: base64.b64encode(f"{user}:{PASSWORDS[user]}".encode()).decode() for key, user in logins.items()}
    file.write_text(json.dumps({"auths": {key: {"auth": text} for key, text in texts.items()}}))


def test_which_login_a_client_sends(client: KeyedClient, registry: DistributionRegistry, dockyard: Dockyard) -> None:
    """The one with the longest path that it knows; where it knows none, that of the host."""
    unique = secrets.token_hex(4)
    ours, other = f"{PREFIX}/team/{unique}-ours", f"{PREFIX}/rest/{unique}-other"
    for name in (ours, other):
        client.push(registry, name.removeprefix(f"{PREFIX}/"))

    def can_pull(name: str) -> bool:
        client.wipe()
        try:
            client.pull(f"{dockyard.host}/{name}:latest")
        except ClientError as exc:
            if re.search(REFUSED, str(exc)):
                return False
            raise
        return True

    host = dockyard.host
    for key, knows in ((f"{host}/{PREFIX}/team", {"prefix"}), (f"{host}/{ours}", {"prefix", "repository"})):
        write_logins(client.file, {host: READER, key: TEAM})
        assert can_pull(ours) == (client.paths in knows), key
        assert can_pull(other), key
        write_logins(client.file, {host: TEAM, key: READER})
        assert can_pull(ours) == (client.paths not in knows), key
        assert not can_pull(other), key
        # Without a login for the address: clients that know no path take the one of a path for all.
        write_logins(client.file, {key: TEAM})
        assert can_pull(ours), key
        write_logins(client.file, {key: READER})
        assert can_pull(other) == (client.paths != "prefix"), key


@pytest.mark.parametrize("name", ["podman", "skopeo"])
def test_a_login_for_a_path(
    name: str, registry: DistributionRegistry, dockyard: Dockyard, request: pytest.FixtureRequest
) -> None:
    """`login` with a path stores it for that path, beside the login for the address."""
    client: Podman | Skopeo = request.getfixturevalue(name)
    unique = secrets.token_hex(4)
    client.log_in(dockyard.host, READER, PASSWORDS[READER])
    client.log_in(f"{dockyard.host}/{PREFIX}/team", TEAM, PASSWORDS[TEAM])
    for repository in (f"team/{unique}", f"rest/{unique}"):
        push_image(registry, repository)
        client.pull(f"{dockyard.host}/{PREFIX}/{repository}:latest")
    client.forget_logins()
    client.wipe()


@pytest.mark.parametrize("name", CLIENTS)
def test_the_page_says_which_keys_a_client_knows(name: str, request: pytest.FixtureRequest) -> None:
    """In one row of the table in CLIENTS.md."""
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", (ROOT / "ops" / "CLIENTS.md").read_text(), re.MULTILINE)
    (keys,) = (keys for names, keys in rows if re.search(rf"\b{name}\b", names) and keys in KEYS)
    assert KEYS[keys] == CLIENTS[name](request).paths
