"""Docker with `registry-mirrors` and a Dockyard that gives access tokens: what its login at Docker Hub does there."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients.access_sources import PASSWORD, USER, access, fetched, push
from tests.support.distribution import DistributionRegistry
from tests.support.dockyard import Dockyard, docker_hub
from tests.support.image_clients import ClientError, DockerDaemon

pytestmark = pytest.mark.clients
HUB = "https://index.docker.io/v1/"


@pytest.fixture
def client(docker: DockerDaemon) -> Iterator[DockerDaemon]:
    """Docker without images, logins and mirrors, before and after."""
    docker.forget_logins()
    docker.wipe()
    yield docker
    docker.use_mirrors()
    docker.forget_logins()
    docker.wipe()


def log_in_at_hub(client: DockerDaemon, user: str, password: str) -> None:
    """Do what `docker login` does after it has asked Docker Hub, which is not reachable here."""
    auth = base64.b64encode(f"{user}:{password}".encode()).decode()
    (client.directory / "config.json").write_text(json.dumps({"auths": {HUB: {"auth": auth}}}))


def test_a_mirror_gives_tokens_to_docker(
    client: DockerDaemon,
    registry: DistributionRegistry,
    start_dockyard: Callable[..., Dockyard],
    tmp_path: Path,
) -> None:
    """Without a login it pulls what is public. Its login at Docker Hub is sent, and must be one of the mirror."""
    rules = ({"allow": True, "repositories": ["docker.io/public/**"]}, {"allow": True, "who": [USER]})
    settings = access(tmp_path / "access", *rules, challenge="bearer")
    client.use_mirrors(start_dockyard([docker_hub(registry)], settings=settings).url)
    public, private = push(registry, "public"), push(registry, "private")
    client.pull(f"{public.repository}:latest")
    assert fetched(registry, public) == sorted(public.blobs)
    client.wipe()
    log_in_at_hub(client, "someone", "at-the-hub")
    registry.clear_requests()
    with pytest.raises(ClientError):
        client.pull(f"{public.repository}:latest")
    assert registry.requests() == []
    log_in_at_hub(client, USER, PASSWORD)
    client.pull(f"{private.repository}:latest")
    assert fetched(registry, private) == sorted(private.blobs)
