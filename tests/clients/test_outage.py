"""Real clients pull through Dockyard while the upstream is stopped."""

from collections.abc import Iterator

import pytest

from tests.clients.conftest import KINDS
from tests.clients.pull_methods import OTHER_REGISTRY, PullMethod
from tests.support.distribution import DistributionRegistry
from tests.support.dockyard import Dockyard
from tests.support.image_clients import ClientError, Skopeo
from tests.support.images import PushedImage, push_index
from tests.support.pull_image import pull_and_verify

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def images(dockyard: Dockyard, registry: DistributionRegistry) -> Iterator[dict[str, PushedImage]]:
    """Images that were pulled through Dockyard once, by a simple client; then the upstream was stopped."""
    pushed = {kind: push(registry, f"library/outage-{kind}", f"outage {kind}") for kind, push in KINDS.items()}
    push_index(registry, "library/never-pulled", "never pulled")
    for image in pushed.values():
        for prefix in ("docker.io", OTHER_REGISTRY):
            pull_and_verify(dockyard.port, f"{prefix}/{image.repository}", image)
    with registry.stopped():
        yield pushed


@pytest.mark.parametrize("kind", KINDS)
def test_cached_images_can_be_pulled_in_an_outage(
    method: PullMethod, kind: str, images: dict[str, PushedImage]
) -> None:
    """A client without images gets the whole image."""
    assert method.pull(images[kind]) == method.expected(images[kind])


@pytest.mark.usefixtures("images")
def test_an_uncached_image_is_reported_as_unavailable(skopeo: Skopeo, dockyard: Dockyard) -> None:
    """The client's error says that the upstream is unavailable, not that the image does not exist."""
    with pytest.raises(ClientError, match="503"):
        skopeo.pull(f"{dockyard.host}/docker.io/library/never-pulled:latest")
