"""Fixtures: real clients, one of each per session, and one Dockyard per module."""

import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.clients.pull_methods import OTHER_REGISTRY, PULL_METHODS, PullMethod
from tests.support.artifact_clients import Oras
from tests.support.cri import Cri
from tests.support.distribution import DistributionRegistry
from tests.support.dockyard import Dockyard, docker_hub, running
from tests.support.image_clients import Containerd, Crane, DockerDaemon, Podman, Skopeo
from tests.support.images import PushedImage, push_docker, push_index
from tests.support.programs import Programs

KINDS: dict[str, Callable[[DistributionRegistry, str, str], PushedImage]] = {
    "index": push_index,
    "docker-v2": push_docker,
}


@pytest.fixture(scope="session")
def containerd(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    """One containerd without images."""
    paths = programs.need("containerd", as_root=True), programs.need("ctr")
    daemon = Containerd(*paths, tmp_path_factory.mktemp("containerd"))
    try:
        daemon.wait()
        yield daemon
    finally:
        daemon.stop()


@pytest.fixture(scope="session")
def docker(
    programs: Programs, containerd: Containerd, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DockerDaemon]:
    """One Docker daemon without images."""
    paths = programs.need("dockerd", as_root=True), programs.need("docker")
    daemon = DockerDaemon(*paths, containerd, tmp_path_factory.mktemp("docker"))
    try:
        daemon.wait()
        yield daemon
    finally:
        daemon.stop()


@pytest.fixture(scope="session")
def skopeo(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Skopeo]:
    """The skopeo client without images."""
    skopeo = Skopeo(programs.need("skopeo"), tmp_path_factory.mktemp("skopeo"))
    yield skopeo
    skopeo.wipe()


@pytest.fixture(scope="session")
def podman(programs: Programs) -> Iterator[Podman]:
    """The podman client without images. Its socket paths must be shorter than those of pytest's directories."""
    with tempfile.TemporaryDirectory(prefix="podman-") as directory:
        podman = Podman(programs.need("podman", as_root=True), Path(directory))
        yield podman
        podman.wipe()


@pytest.fixture(scope="session")
def crane(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crane]:
    """The crane client without images."""
    crane = Crane(programs.need("crane"), tmp_path_factory.mktemp("crane"))
    yield crane
    crane.wipe()


@pytest.fixture(scope="session")
def cri(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cri]:
    """The system's containerd with its CRI plugin."""
    yield from _start_cri(programs, "containerd", tmp_path_factory.mktemp("cri"))


@pytest.fixture(scope="session")
def cri_2(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cri]:
    """The newest containerd with its CRI plugin."""
    yield from _start_cri(programs, "containerd-2", tmp_path_factory.mktemp("cri-2"))


def _start_cri(programs: Programs, program: str, directory: Path) -> Iterator[Cri]:
    cri = Cri(programs.need(program, as_root=True), programs.need("crictl"), directory)
    try:
        cri.wait()
        yield cri
    finally:
        cri.stop()


@pytest.fixture(scope="session")
def oras(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Oras:
    """The oras client without logins."""
    return Oras(programs.need("oras"), tmp_path_factory.mktemp("oras"))


@pytest.fixture(scope="module")
def dockyard(registry: DistributionRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dockyard]:
    """A Dockyard with two workers; the registry is its upstream as Docker Hub and as another registry."""
    other = {**docker_hub(registry), "prefix": OTHER_REGISTRY}
    with running(Dockyard(tmp_path_factory.mktemp("dockyard"), [docker_hub(registry), other])) as dockyard:
        yield dockyard
        dockyard.stop()


@pytest.fixture(params=PULL_METHODS.keys())
def method(request: pytest.FixtureRequest, dockyard: Dockyard) -> Iterator[PullMethod]:
    """Each client with each shape of URL, without images."""
    method = PULL_METHODS[request.param](dockyard, request)
    method.wipe()
    yield method
    method.wipe()


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
