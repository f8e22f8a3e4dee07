"""The image, built from the Dockerfile by a Docker daemon of the tests; its layers are kept for the next run."""

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

import dockyard
from ops.test_servers import cache_directory
from tests.clients.conftest import containerd, direct
from tests.deploy.image.bases import Bases, make_bases
from tests.support.image_clients import Containerd, DockerDaemon
from tests.support.paths import ROOT
from tests.support.programs import Programs, cannot_run

__all__ = ["containerd", "direct"]

NAME = "dockyard-test/dockyard"
REVISION = "0123456789abcdef0123456789abcdef01234567"
BUILD_LIMIT_S = 900.0
KEPT_LAYERS = "4GB"  # limit for cached layers
BUILDKIT_IS_OWN = 23  # since this release the client needs a plugin to build


@attrs.frozen
class Image:
    """The built image and the daemon that has it."""

    docker: DockerDaemon
    bases: Bases
    name: str = NAME


@pytest.fixture(scope="session")
def image(programs: Programs, containerd: Containerd) -> Iterator[Image]:
    """Build the image from the Dockerfile, with other base images."""
    cache = cache_directory()
    dockerd, debootstrap = programs.need("dockerd", as_root=True), programs.need("debootstrap", as_root=True)
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "docker.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two daemons would damage a shared directory
        directory = Path(
            tempfile.mkdtemp(prefix="dockyard-docker-")
        )  # a killed run leaves mounts in which pytest would fail
        docker = DockerDaemon(dockerd, _client(programs), containerd, directory, cache / "docker")
        try:
            docker.wait()
            bases = make_bases(docker, debootstrap, directory)
            docker.run("build", *_options(bases), ROOT, limit_s=BUILD_LIMIT_S)
            yield Image(docker, bases)
            docker.run("image", "rm", "--force", NAME)
            docker.run("builder", "prune", "--force", "--keep-storage", KEPT_LAYERS)
        finally:
            docker.stop()


def _options(bases: Bases) -> list[str]:
    arguments = {
        "PYTHON_IMAGE": bases.python,
        "GO_IMAGE": bases.golang,
        "VERSION": dockyard.__version__,
        "REVISION": REVISION,
    }
    return [
        "--network=host",
        "--progress=plain",
        f"--tag={NAME}",
        *(f"--build-arg={name}={value}" for name, value in arguments.items()),
    ]


def _client(programs: Programs) -> Path:
    """Return a `docker` client that can build with BuildKit: not every one on PATH can."""
    programs.need("docker")
    for directory in os.get_exec_path():
        client = shutil.which("docker", path=directory)
        if client is None:
            continue
        output = subprocess.run([client, "--version"], stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout
        release = re.search(r"version (\d+)\.", output)
        plugin = subprocess.run([client, "buildx", "version"], capture_output=True, timeout=60, check=False)
        if plugin.returncode == 0 or (release and int(release[1]) < BUILDKIT_IS_OWN):
            return Path(client)
    return cannot_run("no docker on PATH can build with BuildKit (Debian package docker-buildx)")
