"""Fixtures: real clients, one of each per session, and one Dockyard per module."""

import contextlib
import secrets
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.support.artifact_clients import Oras
from tests.support.buildkit import BuildKit
from tests.support.cri import Cri
from tests.support.direct_registry import DirectRegistry
from tests.support.distribution import DistributionRegistry
from tests.support.docker_engine import DockerEngine
from tests.support.dockyard import Dockyard, docker_hub, running
from tests.support.image_clients import Containerd, Crane, DockerDaemon, Podman, Skopeo
from tests.support.images import PushedImage
from tests.support.programs import Programs

OTHER_REGISTRY = "registry.example.test"  # a second upstream, not Docker Hub


def push_new(
    push: Callable[[DistributionRegistry, str, str], PushedImage],
    registry: DistributionRegistry,
    direct: DirectRegistry,
) -> PushedImage:
    """Push an image that nobody has pulled, and forget what was requested before."""
    unique = secrets.token_hex(4)
    image = push(registry, f"library/{unique}", unique)
    registry.clear_requests()
    direct.clear()
    return image


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that writes the page."""
    parser.addoption("--write-matrix", action="store_true", help="write what is seen into ops/CLIENT_MATRIX.md")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Make those combinations of parameters long tests that repeat what others show.

    A module of this package says so with a function `is_repetition` of the test and its parameters by their names.
    """
    for item in items:
        is_repetition = getattr(getattr(item, "module", None), "is_repetition", None)
        callspec = getattr(item, "callspec", None)
        if is_repetition and callspec and is_repetition(getattr(item, "originalname", ""), callspec.params):
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DirectRegistry]:
    """What all clients of the session reach that do not ask Dockyard."""
    with contextlib.closing(DirectRegistry(tmp_path_factory.mktemp("direct"))) as direct:
        yield direct


@pytest.fixture(scope="session")
def containerd(
    programs: Programs, direct: DirectRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Containerd]:
    """The system's containerd, without images."""
    paths = programs.need("containerd", as_root=True), programs.need("ctr")
    yield from _started(Containerd(*paths, tmp_path_factory.mktemp("containerd"), **direct.environ))


@pytest.fixture(scope="session")
def containerd_2(
    programs: Programs, direct: DirectRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Containerd]:
    """The newest containerd, without images."""
    paths = programs.need("containerd-2", as_root=True), programs.need("ctr-2")
    yield from _started(Containerd(*paths, tmp_path_factory.mktemp("containerd-2"), **direct.environ))


@pytest.fixture(scope="session")
def docker(
    programs: Programs, direct: DirectRegistry, containerd: Containerd, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DockerDaemon]:
    """The system's Docker daemon with the classic image store, without images."""
    paths = programs.need("dockerd", as_root=True), programs.need("docker")
    yield from _started(DockerDaemon(*paths, containerd, tmp_path_factory.mktemp("docker"), **direct.environ))


@pytest.fixture(scope="session")
def docker_29(
    programs: Programs, direct: DirectRegistry, containerd_2: Containerd, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DockerEngine]:
    """The newest Docker daemon with the containerd image store, without images."""
    program = programs.need("dockerd-29", as_root=True)
    directory = tmp_path_factory.mktemp("docker-29")
    yield from _started(DockerEngine(program, containerd_2.address, directory, **direct.environ))


@pytest.fixture(scope="session")
def buildkit(
    programs: Programs, direct: DirectRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BuildKit]:
    """BuildKit, which `use_config` starts."""
    paths = programs.need("buildkitd", as_root=True), programs.need("buildctl")
    buildkit = BuildKit(*paths, tmp_path_factory.mktemp("buildkit"), **direct.environ)
    yield buildkit
    buildkit.stop()


Daemon = TypeVar("Daemon", Containerd, Cri, DockerDaemon, DockerEngine)


def _started(daemon: Daemon) -> Iterator[Daemon]:
    """Wait until the daemon answers; stop it when the session ends."""
    try:
        daemon.wait()
        yield daemon
    finally:
        daemon.stop()


@pytest.fixture(scope="session")
def skopeo(programs: Programs, direct: DirectRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Skopeo]:
    """The skopeo client without images."""
    skopeo = Skopeo(programs.need("skopeo"), tmp_path_factory.mktemp("skopeo"), **direct.environ)
    yield skopeo
    skopeo.wipe()


@pytest.fixture(scope="session")
def podman(programs: Programs, direct: DirectRegistry) -> Iterator[Podman]:
    """The podman client without images. Its socket paths must be shorter than those of pytest's directories."""
    with tempfile.TemporaryDirectory(prefix="podman-") as directory:
        podman = Podman(programs.need("podman", as_root=True), Path(directory), **direct.environ)
        yield podman
        podman.wipe()


@pytest.fixture(scope="session")
def crane(programs: Programs, direct: DirectRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crane]:
    """The crane client without images."""
    crane = Crane(programs.need("crane"), tmp_path_factory.mktemp("crane"), **direct.environ)
    yield crane
    crane.wipe()


@pytest.fixture(scope="session")
def cri(programs: Programs, direct: DirectRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cri]:
    """The system's containerd with its CRI plugin."""
    paths = programs.need("containerd", as_root=True), programs.need("crictl")
    yield from _started(Cri(*paths, tmp_path_factory.mktemp("cri"), **direct.environ))


@pytest.fixture(scope="session")
def cri_2(programs: Programs, direct: DirectRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cri]:
    """The newest containerd with its CRI plugin."""
    paths = programs.need("containerd-2", as_root=True), programs.need("crictl")
    yield from _started(Cri(*paths, tmp_path_factory.mktemp("cri-2"), **direct.environ))


@pytest.fixture(scope="session")
def oras(programs: Programs, direct: DirectRegistry, tmp_path_factory: pytest.TempPathFactory) -> Oras:
    """The oras client without logins."""
    return Oras(programs.need("oras"), tmp_path_factory.mktemp("oras"), **direct.environ)


@pytest.fixture(scope="module")
def dockyard(registry: DistributionRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dockyard]:
    """A Dockyard with two workers; the registry is its upstream as Docker Hub and as another registry."""
    other = {**docker_hub(registry), "prefix": OTHER_REGISTRY}
    with running(Dockyard(tmp_path_factory.mktemp("dockyard"), [docker_hub(registry), other])) as dockyard:
        yield dockyard
        dockyard.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add Dockyard's log and the requests upstream to the report of a failed test."""
    report = yield
    fixtures = getattr(item, "funcargs", {})
    if report.failed and isinstance(fixtures.get("dockyard"), Dockyard):
        report.sections.append(("Dockyard's log", "\n".join(fixtures["dockyard"].read_log().splitlines()[-80:])))
    if report.failed and isinstance(fixtures.get("registry"), DistributionRegistry):
        report.sections.append(("requests upstream", "\n".join(map(str, fixtures["registry"].requests()))))
    return report


@pytest.fixture(scope="module", params=["basic", "bearer"])
def challenge(request: pytest.FixtureRequest) -> str:
    """How clients are asked for a login: to send it with each request, or to exchange it for an access token."""
    return str(request.param)
