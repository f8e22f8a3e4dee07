"""Files of `ops/nodes` with the versions that they are not for: why there is more than one, and how each is refused."""

import re
from collections.abc import Iterator

import pytest

from tests.clients.conftest import push_new
from tests.clients.ways import CLOSED, NODES, OPEN_1, OPEN_2, OPEN_29, Front
from tests.support.cri import Cri
from tests.support.direct_registry import DirectRegistry
from tests.support.distribution import DistributionRegistry
from tests.support.docker_engine import DockerEngine
from tests.support.dockyard import Dockyard
from tests.support.image_clients import ClientError
from tests.support.images import PushedImage, push_attested
from tests.support.paths import ROOT

pytestmark = pytest.mark.clients

PAGES = ("CLIENTS.md", "NODES.md", "FLEETS.md")


@pytest.fixture
def front(dockyard: Dockyard) -> Front:
    """Dockyard over HTTP."""
    return Front("HTTP", "http", dockyard.host)


@pytest.fixture
def image(registry: DistributionRegistry, direct: DirectRegistry) -> PushedImage:
    """An image with an attestation that nobody has pulled."""
    return push_new(push_attested, registry, direct)


@pytest.fixture
def docker(docker_29: DockerEngine) -> Iterator[DockerEngine]:
    """Docker without images, before and after."""
    docker_29.wipe()
    yield docker_29
    docker_29.wipe()


def test_every_file_is_on_a_page() -> None:
    """Each file of `ops/nodes` is linked from a page, with the version that it is for."""
    text = "".join((ROOT / "ops" / page).read_text() for page in PAGES)
    links = set(re.findall(r"\]\(nodes/([^)#]+)\)", text))
    files = {str(file.relative_to(NODES)) for file in NODES.rglob("*") if file.is_file()}
    # Those for one registry stand beside those for all, and are shown as a whole.
    assert {file for file in files - links if not file.endswith("/docker.io/hosts.toml")} == set()
    assert links <= files


def test_an_unknown_word_makes_containerd_1_ignore_the_file(
    cri: Cri, front: Front, image: PushedImage, registry: DistributionRegistry, direct: DirectRegistry
) -> None:
    """The file for 2.2 sends everything to the registry; one line in the log says so."""
    cri.use_hosts(front.render(OPEN_2))
    logged = len(cri.read_log())
    cri.wipe()
    with direct.answering(registry):
        cri.pull(f"docker.io/{image.repository}:latest")
    cri.wipe()
    assert "unknown capability" in cri.read_log()[logged:]
    assert registry.requests() == []
    assert {request.host for request in direct.requests()} == {"registry-1.docker.io"}


@pytest.mark.parametrize("file", [OPEN_1, OPEN_2, CLOSED])
def test_containerd_2_reads_all_files(
    cri_2: Cri,
    front: Front,
    image: PushedImage,
    registry: DistributionRegistry,
    direct: DirectRegistry,
    file: str,
) -> None:
    """Those for older versions too: it asks Dockyard only."""
    cri_2.use_hosts(front.render(file))
    cri_2.wipe()
    cri_2.pull(f"docker.io/{image.repository}:latest")
    assert cri_2.digest(f"docker.io/{image.repository}:latest") == image.digest
    cri_2.wipe()
    assert registry.requests() != []
    assert direct.requests() == []


def test_docker_29_needs_the_word_referrers(
    docker: DockerEngine, front: Front, image: PushedImage, registry: DistributionRegistry, direct: DirectRegistry
) -> None:
    """Without it, referrers are requested from the registry itself, and the pull fails when that is down."""
    reference = f"docker.io/{image.repository}:latest"
    docker.use_hosts(front.render(OPEN_1))
    with pytest.raises(ClientError):
        docker.pull(reference)
    direct.clear()
    with direct.answering(registry):
        docker.pull(reference)
    assert any("/referrers/" in request.target for request in direct.requests())
    assert not any("/blobs/" in request.target for request in direct.requests())
    docker.wipe()
    direct.clear()
    docker.use_hosts(front.render(OPEN_29))
    docker.pull(reference)
    assert docker.digest(reference) == image.digest
    assert direct.requests() == []
