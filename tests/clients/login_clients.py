"""Real clients that log in and pull from a Dockyard where access is restricted."""

from collections.abc import Callable

import attrs
import pytest

from tests.support.artifact_clients import Oras
from tests.support.cri import Cri
from tests.support.dockyard import Dockyard
from tests.support.image_clients import Containerd, Crane, DockerDaemon, Podman, Skopeo

PREFIX = "docker.io"


@attrs.frozen
class LoginClient:
    """One client, for images whose names begin with the address of a Dockyard.

    `log_in` takes a user and a password, and raises ClientError if the client finds that they are wrong. `pull` takes
    the repository at the upstream, and returns the digest of the image. `reset` removes images and logins.
    """

    log_in: Callable[[str, str], None]
    pull: Callable[[str], str]
    reset: Callable[[], None]
    verifies_login: bool = True


def docker(dockyard: Dockyard, request: pytest.FixtureRequest) -> LoginClient:
    """`docker login` and `docker pull`, with the classic image store."""
    daemon: DockerDaemon = request.getfixturevalue("docker")

    def pull(repository: str) -> str:
        daemon.pull(_name(dockyard, repository))
        return daemon.digest(_name(dockyard, repository))

    return _client(daemon, dockyard, pull)


def podman(dockyard: Dockyard, request: pytest.FixtureRequest) -> LoginClient:
    """`podman login` and `podman pull`."""
    client: Podman = request.getfixturevalue("podman")

    def pull(repository: str) -> str:
        client.pull(_name(dockyard, repository))
        (digest,) = client.digests(_name(dockyard, repository))
        return digest

    return _client(client, dockyard, pull)


def skopeo(dockyard: Dockyard, request: pytest.FixtureRequest) -> LoginClient:
    """`skopeo login` and `skopeo copy`."""
    client: Skopeo = request.getfixturevalue("skopeo")
    return _client(client, dockyard, lambda repository: client.pull(_name(dockyard, repository)).top)


def crane(dockyard: Dockyard, request: pytest.FixtureRequest) -> LoginClient:
    """`crane auth login` and `crane pull`."""
    client: Crane = request.getfixturevalue("crane")

    def pull(repository: str) -> str:
        return client.pull(_name(dockyard, repository)).top

    return attrs.evolve(_client(client, dockyard, pull), verifies_login=False)


def oras(dockyard: Dockyard, request: pytest.FixtureRequest) -> LoginClient:
    """`oras login` and `oras copy`."""
    client: Oras = request.getfixturevalue("oras")
    return LoginClient(
        log_in=lambda user, password: client.log_in(dockyard.host, user, password),
        pull=lambda repository: client.copy(_name(dockyard, repository)),
        reset=client.forget_logins,
    )


def containerd_user(dockyard: Dockyard, request: pytest.FixtureRequest) -> LoginClient:
    """`ctr images pull --user`."""
    client: Containerd = request.getfixturevalue("containerd")
    options: list[str] = []

    def pull(repository: str) -> str:
        client.pull(_name(dockyard, repository), "--plain-http", *options)
        return client.digest(_name(dockyard, repository))

    def reset() -> None:
        options.clear()
        client.wipe()

    def log_in(user: str, password: str) -> None:
        options[:] = ["--user", f"{user}:{password}"]

    return LoginClient(log_in, pull, reset, verifies_login=False)


def cri(dockyard: Dockyard, request: pytest.FixtureRequest) -> LoginClient:
    """The system's containerd for the kubelet, with the login of a pod, for an image with Dockyard's address."""
    return _cri(request.getfixturevalue("cri"), dockyard, f"{dockyard.host}/{PREFIX}")


def cri_closed_node(dockyard: Dockyard, request: pytest.FixtureRequest) -> LoginClient:
    """The same for an image of Docker Hub, on a closed node."""
    return _cri(request.getfixturevalue("cri"), dockyard, PREFIX)


def cri_2(dockyard: Dockyard, request: pytest.FixtureRequest) -> LoginClient:
    """The newest containerd for the kubelet, with the login of a pod, for an image with Dockyard's address."""
    return _cri(request.getfixturevalue("cri_2"), dockyard, f"{dockyard.host}/{PREFIX}")


def cri_2_closed_node(dockyard: Dockyard, request: pytest.FixtureRequest) -> LoginClient:
    """The same for an image of Docker Hub, on a closed node."""
    return _cri(request.getfixturevalue("cri_2"), dockyard, PREFIX)


LOGIN_CLIENTS: dict[str, Callable[[Dockyard, pytest.FixtureRequest], LoginClient]] = {
    "docker": docker,
    "podman": podman,
    "skopeo": skopeo,
    "crane": crane,
    "oras": oras,
    "ctr": containerd_user,
    "cri": cri,
    "cri-closed-node": cri_closed_node,
    "cri-2": cri_2,
    "cri-2-closed-node": cri_2_closed_node,
}


def _name(dockyard: Dockyard, repository: str) -> str:
    return f"{dockyard.host}/{PREFIX}/{repository}:latest"


def _client(
    client: DockerDaemon | Podman | Skopeo | Crane, dockyard: Dockyard, pull: Callable[[str], str]
) -> LoginClient:
    def reset() -> None:
        client.forget_logins()
        client.wipe()

    return LoginClient(lambda user, password: client.log_in(dockyard.host, user, password), pull, reset)


def _cri(client: Cri, dockyard: Dockyard, registry: str) -> LoginClient:
    logins: list[str] = []
    client.use_hosts(f'server = "{dockyard.url}"\n\n[host]\n')

    def pull(repository: str) -> str:
        client.pull(f"{registry}/{repository}:latest", *logins)
        return client.digest(f"{registry}/{repository}:latest")

    def reset() -> None:
        logins.clear()
        client.wipe()

    def log_in(user: str, password: str) -> None:
        logins[:] = [f"{user}:{password}"]

    return LoginClient(log_in, pull, reset, verifies_login=False)
