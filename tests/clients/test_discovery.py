"""Tag lists, artifacts, charts and signatures with real clients: cold, cached, and with the upstream stopped.

The upstreams are distribution, where clients store referrers under a tag, and olareg, which has the referrers API.
"""

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tests.support.artifact_clients import MODEL, Cosign, Helm, Oras
from tests.support.distribution import DistributionRegistry
from tests.support.dockyard import Dockyard, docker_hub
from tests.support.image_clients import ClientError, Crane
from tests.support.olareg import Olareg
from tests.support.olareg_fixtures import olareg
from tests.support.programs import Programs

__all__ = ["olareg"]

pytestmark = pytest.mark.clients

SBOM, SCAN = "application/vnd.example.sbom", "application/vnd.example.scan"

T = TypeVar("T")


@pytest.fixture(params=["registry", "olareg"])
def upstream(request: pytest.FixtureRequest) -> DistributionRegistry | Olareg:
    """Each of the upstreams."""
    found: DistributionRegistry | Olareg = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def repository() -> str:
    """A repository that no other test uses."""
    return f"tests/{secrets.token_hex(4)}"


@pytest.fixture
def through(
    upstream: DistributionRegistry | Olareg, repository: str, start_dockyard: Callable[..., Dockyard]
) -> Callable[[Callable[[str], T]], list[T]]:
    """Run an action on the repository through a new Dockyard: cold, cached, and while the upstream is stopped."""

    def do(action: Callable[[str], T]) -> list[T]:
        dockyard = start_dockyard([docker_hub(upstream)])
        name = f"{dockyard.host}/docker.io/{repository}"
        results = [action(name), action(name)]
        with upstream.stopped():
            results.append(action(name))
        return results

    return do


@pytest.fixture
def oras(programs: Programs, tmp_path: Path) -> Oras:
    """The oras client."""
    (tmp_path / "oras").mkdir()
    return Oras(programs.need("oras"), tmp_path / "oras")


def test_crane_lists_tags(
    upstream: DistributionRegistry | Olareg,
    repository: str,
    through: Callable[..., list[list[str]]],
    crane: Crane,
    oras: Oras,
) -> None:
    """All tags, sorted."""
    tags = ["latest", "v1", "v10", "v2"]
    for tag in tags:
        oras.push(f"{upstream.host}/{repository}:{tag}", "file.txt", b"one", SBOM)
    assert through(crane.tags) == [tags] * 3


def test_oras_discovers_referrers(
    upstream: DistributionRegistry | Olareg, repository: str, through: Callable[..., list[list[str]]], oras: Oras
) -> None:
    """Both referrers, and one of them with a filter by its type."""
    source = f"{upstream.host}/{repository}:v1"
    oras.push(source, "file.txt", b"the subject", SBOM)
    oras.attach(source, "sbom.txt", b"a list of parts", SBOM)
    oras.attach(source, "scan.txt", b"no findings", SCAN)

    def types(name: str, *options: str) -> list[str]:
        return sorted(referrer["artifactType"] for referrer in oras.discover(f"{name}:v1", *options))

    assert through(types) == [[SBOM, SCAN]] * 3
    assert through(lambda name: types(name, "--artifact-type", SCAN)) == [[SCAN]] * 3


def test_oras_pulls_a_model(
    upstream: DistributionRegistry | Olareg, repository: str, through: Callable[..., list[dict[str, bytes]]], oras: Oras
) -> None:
    """A ModelPack artifact: the weights are one layer each, as they are, and no layer of an image."""
    files = {
        "model-1.safetensors": (secrets.token_bytes(3_000_000), f"{MODEL}.weight.v1.raw"),
        "model-2.safetensors": (secrets.token_bytes(2_000_000), f"{MODEL}.weight.v1.raw"),
        "tokenizer.json": (b'{"version": "1.0"}', f"{MODEL}.weight.config.v1.raw"),
        "README.md": (b"A model.", f"{MODEL}.doc.v1.raw"),
    }
    config = b'{"descriptor": {"name": "test"}, "config": {"format": "safetensors"}, "modelfs": {"type": "layers"}}'
    oras.push_model(f"{upstream.host}/{repository}:v1", config, files)
    contents = {name: content for name, (content, _) in files.items()}
    assert through(lambda name: oras.pull(f"{name}:v1")) == [contents] * 3


def test_oras_pulls_an_artifact(
    upstream: DistributionRegistry | Olareg, repository: str, through: Callable[..., list[dict[str, bytes]]], oras: Oras
) -> None:
    """The file that was pushed."""
    oras.push(f"{upstream.host}/{repository}:v1", "file.txt", b"what was pushed", SBOM)
    assert through(lambda name: oras.pull(f"{name}:v1")) == [{"file.txt": b"what was pushed"}] * 3


def test_helm_pulls_a_chart(
    upstream: DistributionRegistry | Olareg,
    repository: str,
    through: Callable[..., list[bytes]],
    programs: Programs,
    tmp_path: Path,
) -> None:
    """The chart that was pushed, to the byte."""
    helm = Helm(programs.need("helm"), tmp_path)
    packed = helm.push(f"{upstream.host}/{repository}", "chart", "1.2.3")
    assert through(lambda name: helm.pull(name, "chart", "1.2.3")) == [packed] * 3


@pytest.mark.parametrize("is_bundle", [True, False], ids=["bundle", "tag"])
def test_cosign_verifies_a_signature(
    upstream: DistributionRegistry | Olareg,
    repository: str,
    through: Callable[..., list[str]],
    programs: Programs,
    tmp_path: Path,
    oras: Oras,
    *,
    is_bundle: bool,
) -> None:
    """Signatures as referrers and in a tag verify with our key; with another key they do not."""
    oras.push(f"{upstream.host}/{repository}:v1", "file.txt", b"what is signed", SBOM)
    digest = oras.digest(f"{upstream.host}/{repository}:v1")
    mine, other = (Cosign(programs.need("cosign"), _made(tmp_path / name)) for name in ("mine", "other"))
    mine.sign(f"{upstream.host}/{repository}@{digest}", is_bundle=is_bundle)

    def verify(name: str) -> str:
        with pytest.raises(ClientError):
            other.verify(f"{name}@{digest}")
        (claim,) = mine.verify(f"{name}@{digest}")
        return str(claim["critical"]["image"]["docker-manifest-digest"])

    assert through(verify) == [digest] * 3


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory
