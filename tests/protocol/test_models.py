"""Models: what `ollama pull` needs, and what its registry gets wrong.

The requests are those of server/images.go and server/download.go of github.com/ollama/ollama v0.32.12.
"""

import json
from collections.abc import Callable
from urllib.parse import urljoin

import attrs
import pytest

from tests.support import faults
from tests.support.bodies import Bytes, digest_of
from tests.support.deployment import Deployment
from tests.support.fake_registry import DOCKER_MANIFEST, FakeRegistry

OLLAMA = "ollama/0.32.12 (amd64 linux) Go/go1.26.0"
PART_BYTES = 100_000  # at least 100 MB in `ollama pull`
MODEL = "up.test/library/llama3"


@attrs.frozen
class Model:
    """A model in the registry: its manifest, and the content of each blob."""

    digest: str
    body: bytes
    blobs: dict[str, bytes]


def add_model(registry: FakeRegistry, repo: str, seed: str) -> Model:
    """Add a model with the media types of Ollama under the tag `8b`; the weights are three parts and a bit."""
    contents = {
        "application/vnd.docker.container.image.v1+json": json.dumps({"model_format": "gguf", "seed": seed}).encode(),
        "application/vnd.ollama.image.model": seed.encode().ljust(3 * PART_BYTES + 17, b"w"),
        "application/vnd.ollama.image.template": f"{{{{ .Prompt }}}} {seed}".encode(),
        "application/vnd.ollama.image.params": json.dumps({"stop": [seed]}).encode(),
    }
    config, *layers = [
        {"mediaType": media_type, "digest": registry.add_blob(content), "size": len(content)}
        for media_type, content in contents.items()
    ]
    document = {"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": config, "layers": layers}
    digest = registry.add_manifest(repo, "8b", document, DOCKER_MANIFEST)
    blobs = {digest_of(content): content for content in contents.values()}
    return Model(digest, registry.manifest_body(repo, digest), blobs)


def pull_blob(deployment: Deployment, name: str, digest: str) -> bytes:
    """Pull a blob as `ollama pull` does: its size by HEAD, its URL by a GET, then parts from that URL."""
    path = f"/v2/{name}/blobs/{digest}"
    size = int(deployment.head(path, User_Agent=OLLAMA).header("Content-Length") or 0)
    response = deployment.get(path, User_Agent=OLLAMA)
    assert response.status in {200, 307}
    location = response.header("Location")
    assert location is not None, "http: no Location header in response"
    path = urljoin(path, location)  # the requests of parts have neither the User-Agent nor a login
    parts = [
        deployment.get(path, Range=f"bytes={start}-{min(start + PART_BYTES, size) - 1}")
        for start in range(0, size, PART_BYTES)
    ]
    assert {part.status for part in parts} == {206}
    return b"".join(part.body for part in parts)


@pytest.mark.parametrize("prefix", ["/v2/up.test", "/up.test/v2"])
def test_ollama_finds_blobs_at_the_location_of_the_response(deployment: Deployment, prefix: str) -> None:
    """Without Location `ollama pull` fails, also for a 200. It is relative, so it is right behind every proxy."""
    digest = deployment.fake_registry.add_blob(f"weights {prefix}".encode())
    path = f"{prefix}/library/llama3/blobs/{digest}"
    for _ in ("cold", "cached"):
        response = deployment.get(path, User_Agent=OLLAMA)
        assert (response.status, response.body) == (200, f"weights {prefix}".encode())
        location = response.header("Location")
        assert location is not None
        assert urljoin(path, location) == path


@pytest.mark.parametrize("headers", [{}, {"User_Agent": "containerd/2.4.2"}, {"User_Agent": "x ollama/1"}])
def test_no_other_client_gets_a_location(deployment: Deployment, headers: dict[str, str]) -> None:
    """A 200 with Location means nothing in HTTP: only Ollama reads it."""
    digest = deployment.fake_registry.add_blob(b"for everybody")
    assert deployment.get(f"/v2/up.test/app/blobs/{digest}", **headers).header("Location") is None
    assert deployment.get(f"/v2/up.test/app/blobs/{digest}", Range="bytes=0-3", **headers).header("Location") is None


def test_a_model_pulls_as_from_the_registry_of_ollama(deployment: Deployment) -> None:
    """That registry has manifests under tags only, not for HEAD, and as text; each is requested once."""
    registry = deployment.fake_registry
    model = add_model(registry, "library/llama3", "by tag")
    rules = [
        registry.on("manifest", faults.error_response(405), method="HEAD", repo="library/llama3"),
        registry.on("manifest", faults.error_response(500), reference=model.digest),
        registry.on(
            "manifest", faults.header("Content-Type", "text/plain; charset=utf-8"), method="GET", reference="8b"
        ),
        registry.on("manifest", faults.without("Docker-Content-Digest", "ETag"), method="GET", reference="8b"),
    ]
    for _ in ("cold", "cached"):
        response = deployment.get(f"/v2/{MODEL}/manifests/8b", User_Agent=OLLAMA, Accept=DOCKER_MANIFEST)
        assert (response.status, response.body) == (200, model.body)
        assert response.header("Content-Type") == DOCKER_MANIFEST
        assert response.header("Docker-Content-Digest") == model.digest
    registry.remove_rules(*rules)
    assert registry.received("manifest", reference=model.digest) == []
    assert registry.count("manifest", "GET", reference="8b") == 2
    for digest, content in model.blobs.items():
        assert pull_blob(deployment, MODEL, digest) == content
        assert registry.count("blob", "GET", reference=digest) == 1


def test_a_model_in_several_workers(make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry) -> None:
    """The manifest that the owner of the tag has fetched reaches the client whichever worker it asks."""
    deployment = make_deployment(workers=3)
    fake_registry.on("manifest", faults.error_response(405), method="HEAD")
    for number in range(8):
        model = add_model(fake_registry, f"library/m{number}", f"worker {number}")
        fake_registry.on("manifest", faults.error_response(500), reference=model.digest)
        for _ in range(4):
            response = deployment.get(f"/v2/up.test/library/m{number}/manifests/8b", User_Agent=OLLAMA)
            assert (response.status, response.body) == (200, model.body)
        assert fake_registry.received("manifest", reference=model.digest) == []


def test_a_model_that_moves(deployment: Deployment) -> None:
    """The new manifest comes with the check of the tag, too."""
    registry = deployment.fake_registry
    rule = registry.on("manifest", faults.error_response(405), method="HEAD", repo="library/moving")
    old = add_model(registry, "library/moving", "old")
    path = "/v2/up.test/library/moving/manifests/8b"
    assert deployment.get(path).body == old.body
    new = add_model(registry, "library/moving", "new")
    by_digest = registry.on("manifest", faults.error_response(500), reference=new.digest)
    assert deployment.get(path).body == new.body
    assert deployment.get(f"/v2/up.test/library/moving/manifests/{new.digest}").body == new.body
    registry.remove_rules(rule, by_digest)


def test_a_part_beyond_what_has_come_is_right(deployment: Deployment) -> None:
    """The last part may be requested first: it waits for the download, which is one."""
    content = bytes(range(256)) * 4096
    digest = deployment.fake_registry.add_blob(Bytes(content))
    start = len(content) - 50
    response = deployment.get(f"/v2/{MODEL}/blobs/{digest}", Range=f"bytes={start}-{len(content) - 1}")
    assert (response.status, response.body) == (206, content[start:])
    assert deployment.fake_registry.count("blob", "GET", reference=digest) == 1
