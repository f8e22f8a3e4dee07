"""The image built from the Dockerfile: labels, bill of materials, and a server that does not run as root."""

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import yaml

import dockyard
from tests.deploy.image.conftest import BUILD_LIMIT_S, REVISION, ROOT, Image
from tests.deploy.image.test_pins import pins
from tests.support.distribution import DistributionRegistry
from tests.support.dockyard import docker_hub
from tests.support.image_clients import ClientError, DockerDaemon
from tests.support.images import ARCHITECTURES, THIS_ARCHITECTURE, push_index
from tests.support.processes import free_port, wait_until
from tests.support.pull_image import pull_and_verify

# The first build on a machine makes the base images, and compiles: minutes. Later ones take seconds.
pytestmark = pytest.mark.timeout(1500)

UID = 65532
SBOM = "/usr/local/share/sbom/dockyard.cdx.json"
INSTALLED = """\
import importlib.metadata, json
print(json.dumps({each.name: each.version for each in importlib.metadata.distributions()}))
"""
RESTRICTIONS = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")


@attrs.frozen
class Container:
    """A running Dockyard, with a read-only root file system and the host's network."""

    docker: DockerDaemon
    name: str
    port: int

    def exec(self, *command: str) -> str:
        return self.docker.run("exec", self.name, *command)

    def state(self) -> dict[str, Any]:
        return dict(self.docker.inspect(self.name)["State"])

    def wait_for(self, health: str) -> None:
        """Wait until Docker reports this health."""
        wait_until(lambda: self.state()["Health"]["Status"] == health, health)

    def pids(self) -> list[int]:
        """The pids of its processes on the host."""
        return [int(pid) for pid in self.docker.run("top", self.name, "-o", "pid").split()[1:]]

    def uids(self) -> set[int]:
        """The users that its processes run as."""
        return {os.stat(f"/proc/{pid}").st_uid for pid in self.pids()}


@pytest.fixture
def start(image: Image, registry: DistributionRegistry, tmp_path: Path) -> Iterator[Callable[[], Container]]:
    """A function that starts the image as ops/IMAGE.md does, with a shorter health check interval."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"upstreams": [docker_hub(registry)]}))
    started: list[Container] = []

    def run() -> Container:
        container = Container(image.docker, f"dockyard-{len(started)}", free_port())
        started.append(container)
        settings = {"SERVER_HOST": "127.0.0.1", "SERVER_PORT": str(container.port), "SERVER_WORKERS": "2"}
        image.docker.run(
            *("run", "--detach", *RESTRICTIONS, "--network=host", "--name", container.name),
            *("--volume", f"{config}:/etc/dockyard/config.yaml:ro", "--health-interval=1s", "--health-retries=1"),
            *(f"--env={name}={value}" for name, value in settings.items()),
            *(image.name, "server", "-c", "/etc/dockyard/config.yaml"),
        )
        container.wait_for("healthy")
        return container

    yield run
    for container in started:
        with contextlib.suppress(ClientError):  # no container has this name
            image.docker.run("rm", "--force", "--volumes", container.name)


def sbom(image: Image) -> dict[str, Any]:
    """The bill of materials, extracted as ops/IMAGE.md describes."""
    return dict(json.loads(image.docker.run("run", "--rm", "--network=none", "--entrypoint=cat", image.name, SBOM)))


def test_labels_user_volume_and_stop_signal(image: Image) -> None:
    """The labels of the OCI image specification; a user other than root, a volume, a stop signal."""
    config = image.docker.inspect(image.name)["Config"]
    assert {name.rpartition(".")[2]: value for name, value in config["Labels"].items()} == {
        "title": "Dockyard",
        "description": "A pull-through cache for OCI images",
        "licenses": "MIT",
        "version": dockyard.__version__,
        "revision": REVISION,
        "name": image.bases.python,
    }
    assert all(name.startswith("org.opencontainers.image.") for name in config["Labels"])
    assert config["User"] == f"{UID}:{UID}"
    assert list(config["Volumes"]) == ["/var/cache/dockyard"]
    assert config["StopSignal"] == "SIGTERM"


def test_the_sbom_names_every_distribution(image: Image) -> None:
    """Every installed distribution, with its version and the hash in the lock file; and nothing else."""
    python = "/opt/dockyard/bin/python"
    output = image.docker.run("run", "--rm", "--network=none", f"--entrypoint={python}", image.name, "-c", INSTALLED)
    installed = json.loads(output)
    document = sbom(image)
    listed = {
        each["name"]: each
        for each in [document["metadata"]["component"], *document["components"]]
        if each.get("purl", "").startswith("pkg:pypi/")
    }
    assert {name: each["version"] for name, each in listed.items()} == installed
    assert set(installed) == {"dockyard", *(each["name"] for each in listed.values())}
    assert len(installed) == len(pins("dockyard")) + 1
    lock = (ROOT / "ops" / "image" / "dockyard.txt").read_text()
    for name, each in listed.items():
        (found,) = [entry["content"] for entry in each["hashes"] if entry["alg"] == "SHA-256"]
        assert len(found) == 64
        assert name == "dockyard" or f"sha256:{found} " in lock.replace("\n", " ")


def test_the_sbom_names_the_base_and_the_go_modules(image: Image) -> None:
    """The base image, and every module of the ECR helper with the version in go.mod."""
    components = {each["name"]: each for each in sbom(image)["components"]}
    assert components[image.bases.python]["type"] == "container"
    modules = (ROOT / "ops" / "image" / "ecr-login" / "go.mod").read_text()
    built = {name: each for name, each in components.items() if each.get("purl", "").startswith("pkg:golang/g")}
    assert len(built) >= 20
    for name, module in built.items():
        assert f"{name} {module['version']}" in modules
        assert [len(entry["content"]) for entry in module["hashes"]] == [64]


def test_the_ecr_helper_runs(image: Image) -> None:
    """It is on PATH, where the keychain looks for it, and runs."""
    command = ["run", "--rm", "--network=none", "--entrypoint=docker-credential-ecr-login", image.name, "version"]
    assert "amazon-ecr-credential-helper" in image.docker.run(*command)


def test_the_ecr_helper_is_built_for_the_other_platform(image: Image) -> None:
    """Go builds a program for arm64 on amd64, and the other way round."""
    (other,) = set(ARCHITECTURES) - {THIS_ARCHITECTURE}
    image.docker.run(
        *("build", "--quiet", "--network=host", f"--platform=linux/{other}", "--target=ecr-login"),
        *(f"--build-arg=GO_IMAGE={image.bases.golang}", f"--build-arg=PYTHON_IMAGE={image.bases.python}"),
        *(f"--tag={image.name}:{other}", ROOT),
        limit_s=BUILD_LIMIT_S,
    )
    program = "/out/docker-credential-ecr-login"
    command = ["run", "--rm", "--network=none", "--entrypoint=go", f"{image.name}:{other}", "version", "-m", program]
    assert f"GOARCH={other}" in image.docker.run(*command)


def test_serving_from_a_read_only_file_system(registry: DistributionRegistry, start: Callable[[], Container]) -> None:
    """As an unprivileged user with only the volume writable: an image is pulled through it, each blob fetched once."""
    pushed = push_index(registry, "library/image", seed="image")
    container = start()
    registry.clear_requests()
    for _ in range(2):
        pull_and_verify(container.port, "docker.io/library/image", pushed)
    got = [request.path for request in registry.requests() if request.method == "GET" and "/blobs/" in request.path]
    assert sorted(got) == sorted(f"/v2/library/image/blobs/{digest}" for digest in pushed.blobs)
    assert container.uids() == {UID}
    with pytest.raises(ClientError, match="Read-only file system"):
        container.exec("touch", "/opt/dockyard/written")


def test_a_directory_of_another_user_is_explained(image: Image, tmp_path: Path) -> None:
    """A directory of the host that belongs to root: the message has both users and the cure."""
    options = ["--rm", *RESTRICTIONS, "--network=none", "--volume", f"{tmp_path}:/var/cache/dockyard"]
    tmp_path.chmod(0o755)
    with pytest.raises(ClientError) as caught:
        image.docker.run("run", *options, image.name)
    assert "storage.directory: cannot write /var/cache/dockyard: Permission denied" in str(caught.value)
    assert "belongs to uid 0 (root) and gid 0 (root), mode 0755, and this process runs as uid 65532" in str(
        caught.value
    )


@pytest.mark.parametrize("limit", ["--cpus=1", "--memory=200m"])
def test_limits_of_the_container_limit_the_workers(image: Image, limit: str) -> None:
    """One CPU, or memory for one worker: there is one, also on a machine with more processors."""
    container = Container(image.docker, "dockyard-limited", free_port())
    settings = [f"--env=SERVER_PORT={container.port}", "--env=SERVER_HOST=127.0.0.1"]
    options = ["--detach", *RESTRICTIONS, "--network=host", "--health-interval=1s", "--name", container.name]
    image.docker.run("run", *options, limit, *settings, image.name)
    try:
        container.wait_for("healthy")
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in container.pids()]
        assert len([command for command in commands if b"worker" in command]) == 1, commands
    finally:
        image.docker.run("rm", "--force", "--volumes", container.name)


def test_a_stop_is_clean_and_the_volume_keeps_the_cache(
    registry: DistributionRegistry, start: Callable[[], Container]
) -> None:
    """SIGTERM ends it with status 0; started again, it serves cached content while the upstream is down."""
    pushed = push_index(registry, "library/volume", seed="volume")
    container = start()
    pull_and_verify(container.port, "docker.io/library/volume", pushed)
    container.docker.run("stop", "--time=30", container.name)
    assert container.state()["ExitCode"] == 0
    with registry.stopped():
        container.docker.run("start", container.name)
        container.wait_for("healthy")
        pull_and_verify(container.port, "docker.io/library/volume", pushed)


def test_a_server_that_does_not_answer_is_unhealthy(start: Callable[[], Container]) -> None:
    """With all its processes frozen the health check fails, and passes again when they continue."""
    container = start()
    pids = container.pids()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    container.wait_for("unhealthy")
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    container.wait_for("healthy")
