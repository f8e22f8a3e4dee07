"""Real clients pull by names that the rows of `test_matrix.py` do not have, and what an outage looks like to them."""

from pathlib import Path

import pytest

from tests.clients.conftest import OTHER_REGISTRY, push_new
from tests.support.direct_registry import DirectRegistry
from tests.support.distribution import DistributionRegistry
from tests.support.dockyard import Dockyard
from tests.support.image_clients import ClientError, Containerd, Crane, Skopeo
from tests.support.images import PushedImage, push_index

pytestmark = pytest.mark.clients


@pytest.fixture
def image(registry: DistributionRegistry, direct: DirectRegistry) -> PushedImage:
    """An image that no client has pulled yet."""
    return push_new(push_index, registry, direct)


def test_a_short_name_is_one_of_docker_hub(crane: Crane, dockyard: Dockyard, image: PushedImage) -> None:
    """Dockyard adds `library/`, because the prefix is Docker Hub."""
    reference = f"{dockyard.host}/docker.io/{image.repository.removeprefix('library/')}:latest"
    assert crane.pull(reference).digests == image.blobs | image.manifests
    assert crane.digest(reference) == image.digest


@pytest.mark.parametrize(
    ("directory", "path"),
    [("docker.io", "/docker.io"), ("_default", "")],
    ids=["prefix before v2", "another registry than Docker Hub"],
)
def test_containerd_with_other_urls_of_mirrors(
    containerd: Containerd,
    dockyard: Dockyard,
    direct: DirectRegistry,
    image: PushedImage,
    tmp_path: Path,
    directory: str,
    path: str,
) -> None:
    """Containerd appends `/v2` to the path of a mirror; `ns` names the registry."""
    certs = tmp_path / "certs.d"
    (certs / directory).mkdir(parents=True)
    hosts = f'[host."{dockyard.url}{path}"]\ncapabilities = ["pull", "resolve"]\n'
    (certs / directory / "hosts.toml").write_text(hosts)
    reference = f"{directory if path else OTHER_REGISTRY}/{image.repository}:latest"
    containerd.wipe()
    containerd.pull(reference, "--hosts-dir", certs)
    expected = image.this_platform.blobs | {image.digest, image.this_platform.digest}
    found = containerd.content() | {containerd.digest(reference)}
    assert found in (expected, expected | _metadata_of_others(image))
    assert direct.requests() == []
    containerd.wipe()


def _metadata_of_others(image: PushedImage) -> frozenset[str]:
    """The manifests and configurations for other platforms, which containerd 2 pulls too."""
    others = [single for single in image.platforms.values() if single is not image.this_platform]
    return frozenset(digest for single in others for digest in (single.digest, single.config.digest))


def test_an_uncached_image_is_reported_as_unavailable(
    skopeo: Skopeo, registry: DistributionRegistry, dockyard: Dockyard, image: PushedImage
) -> None:
    """The client's error says that the upstream is unavailable, not that the image does not exist."""
    with registry.stopped(), pytest.raises(ClientError, match="503"):
        skopeo.pull(f"{dockyard.host}/docker.io/{image.repository}:latest")
