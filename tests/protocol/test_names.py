"""Names, references and digests: checked before any request is sent upstream."""

import http.client
from functools import partial
from typing import Any

import pytest

from tests.support.bodies import digest_of
from tests.support.deployment import Deployment, eventually
from tests.support.fake_registry import OCI_MANIFEST, FakeRegistry
from tests.support.http_client import send_raw

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "name", ["Foo", "a__b___c", "-a", "a-", "a..b", "a/", "a//b", ".", "é", "%C3%A9", "a" * 300, "a/" * 150 + "a"]
)
def test_names_outside_the_grammar(deployment: Deployment, name: str) -> None:
    """A name outside the grammar is rejected with its error code, and no request is sent upstream."""
    before = len(deployment.fake_registry.exchanges)
    response = deployment.get(f"/v2/up.test/{name}/manifests/x")
    assert (response.status, response.error) in [
        (400, "NAME_INVALID"),
        *([(404, response.error)] if "/" in name else []),
    ]
    assert len(deployment.fake_registry.exchanges) == before
    deployment.assert_no_leak(response)


@pytest.mark.parametrize(
    "target",
    [
        "/v2/up.test/../../etc/passwd/manifests/x",
        "/v2/../../etc/passwd",
        "/v2/up.test/app/blobs/../../../../secret.txt",
        "/v2/%2e%2e%2fup.test/app/manifests/x",
        "/v2/%2e%2e/%2e%2e/etc/passwd",
        "/v2/up.test/..%2fapp/manifests/x",
        "/v2/up.test/%252e%252e/app/manifests/x",
        "/v2/up.test/a%2Fb/manifests/x",
        "/v2/up.test/a\\b/manifests/x",
        "/v2/up.test/a%5Cb/manifests/x",
        "/v2/up.test/a%00b/manifests/x",
        "/v2/up.test/app/manifests/x%00",
        f"/v2/up.test/app/blobs/sha256:{'0' * 64}%0a",
        "/v2/up.test/app%ff/manifests/x",
        "//v2/up.test/app/manifests/x",
        "/v2//up.test/app/manifests/x",
        "http://evil.test/v2/up.test/../app/manifests/x",
    ],
)
def test_path_traversal_in_the_request_target(deployment: Deployment, target: str) -> None:
    """Dots, escapes, backslashes and NULs in the raw target reach neither the upstream nor the disk."""
    secret = deployment.dockyard.storage.parent / "secret.txt"
    secret.write_text("a secret file")
    files = {path for path in deployment.dockyard.storage.parent.rglob("*") if "run" not in path.parts}
    before = len(deployment.fake_registry.exchanges)
    response = deployment.get(target)
    assert response.status in (400, 404)
    assert b"a secret file" not in response.body
    assert len(deployment.fake_registry.exchanges) == before
    assert {path for path in deployment.dockyard.storage.parent.rglob("*") if "run" not in path.parts} == files


def test_an_absolute_form_target_is_taken_by_its_path(deployment: Deployment) -> None:
    """`GET http://evil/v2/` is our own `/v2/`: no request is sent on the client's behalf."""
    before = len(deployment.fake_registry.exchanges)
    response = deployment.get(f"{deployment.fake_registry.url}/v2/")
    assert response.status in (200, 400)
    assert len(deployment.fake_registry.exchanges) == before


@pytest.mark.parametrize("tag", ["-x", ".x", "a" * 129, "a:b", "a%20b", "latest%0d%0aX:1", "%C3%A9", "a+b"])
def test_tags_outside_the_grammar(deployment: Deployment, tag: str) -> None:
    """A tag outside the grammar is rejected, nothing of it gets into a header, and no request is sent upstream."""
    before = len(deployment.fake_registry.exchanges)
    response = deployment.get(f"/v2/up.test/app/manifests/{tag}")
    assert response.status in (400, 404)
    assert response.error in ("MANIFEST_INVALID", "MANIFEST_UNKNOWN", "DIGEST_INVALID", "NAME_INVALID", "UNSUPPORTED")
    assert response.header("X") is None
    assert len(deployment.fake_registry.exchanges) == before


def test_a_space_in_the_request_line(deployment: Deployment) -> None:
    """A raw space makes the request line malformed: an error, and no request is sent upstream."""
    before = len(deployment.fake_registry.exchanges)
    response = send_raw(deployment.address, b"GET /v2/up.test/app/manifests/a b HTTP/1.1\r\nHost: x\r\n\r\n")
    assert response.split(b" ")[1:2] in ([b"400"], [b"404"])
    assert len(deployment.fake_registry.exchanges) == before


BAD_DIGESTS = [
    "sha256:abc",
    "sha256:" + HEX.upper(),
    "sha256:" + HEX[:63],
    "sha256:" + HEX + "0",
    "sha256:" + "g" * 64,
    "sha256:",
    "md5:" + HEX[:32],
    "sha512:" + HEX,
    "SHA256:" + HEX,
    "sha256:" + HEX[:62] + "/a",
    "sha256:..",
]


@pytest.mark.parametrize("digest", [*BAD_DIGESTS, "sha256", "sha256-" + HEX])
def test_blob_digests_outside_the_grammar(deployment: Deployment, digest: str) -> None:
    """A malformed digest is rejected by validation: no internal error, and no request is sent upstream."""
    before = len(deployment.fake_registry.exchanges)
    for method in ("GET", "HEAD"):
        response = deployment.request(method, f"/v2/up.test/app/blobs/{digest}")
        assert response.status in ((400, 404) if "/" in digest else (400,))
    if "/" not in digest:
        assert deployment.get(f"/v2/up.test/app/blobs/{digest}").error == "DIGEST_INVALID"
    assert len(deployment.fake_registry.exchanges) == before


@pytest.mark.parametrize("digest", BAD_DIGESTS)
def test_manifest_digests_outside_the_grammar(deployment: Deployment, digest: str) -> None:
    """The same for manifests, where the conformance suite accepts 404 as well."""
    before = len(deployment.fake_registry.exchanges)
    response = deployment.get(f"/v2/up.test/app/manifests/{digest}")
    assert response.status in (400, 404)
    assert len(deployment.fake_registry.exchanges) == before
    deployment.assert_no_leak(response)


def test_an_unknown_digest_algorithm(deployment: Deployment) -> None:
    """A valid digest of an unknown algorithm is rejected with an error code of the specification."""
    before = len(deployment.fake_registry.exchanges)
    response = deployment.get(f"/v2/up.test/app/blobs/blake3:{HEX}")
    assert response.status in (400, 404)
    assert response.error in ("DIGEST_INVALID", "BLOB_UNKNOWN", "UNSUPPORTED")
    assert deployment.stored_files(f"blake3:{HEX}") == []
    assert len(deployment.fake_registry.exchanges) == before


def _sha512_content(fake_registry: FakeRegistry) -> tuple[str, bytes, str, bytes]:
    blob = b"a layer that is named by sha512" * 50
    document: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {}, "layers": []}
    digest = fake_registry.add_manifest("sha512", None, document, OCI_MANIFEST, algorithm="sha512")
    return fake_registry.add_blob(blob, algorithm="sha512"), blob, digest, fake_registry.manifest_body("sha512", digest)


def test_sha512_manifests_and_blobs(deployment: Deployment) -> None:
    """Content named by sha512 is verified, stored under its algorithm, and served from the cache."""
    blob_digest, blob, manifest_digest, manifest = _sha512_content(deployment.fake_registry)
    for kind, digest, body in (("blobs", blob_digest, blob), ("manifests", manifest_digest, manifest)):
        path = f"/v2/up.test/sha512/{kind}/{digest}"
        for temperature in ("cold", "warm"):
            count_before = deployment.fake_registry.count(reference=digest)
            response = deployment.get(path)
            assert (response.status, response.body) == (200, body), temperature
            assert response.header("Docker-Content-Digest") == digest
            assert deployment.head(path).header("Docker-Content-Digest") == digest
            if temperature == "warm":
                assert deployment.fake_registry.count(reference=digest) == count_before
        assert all(
            "sha512" in file.parts for file in eventually(partial(deployment.stored_files, digest), "it is stored")
        )


def test_sha512_is_verified(deployment: Deployment) -> None:
    """Bytes that do not match the requested sha512 digest are not served."""
    digest = digest_of(b"the right bytes", "sha512")
    deployment.fake_registry.on(
        "blob", lambda request, response: response.of(200, b"some other one!"), reference=digest
    )
    assert deployment.get(f"/v2/up.test/sha512/blobs/{digest}").status == http.client.BAD_GATEWAY
    assert deployment.stored_files(digest) == []


def test_a_repository_named_like_endpoints(deployment: Deployment) -> None:
    """`blobs` and `manifests` are legal name components: paths are parsed from the right."""
    repo = "blobs/manifests/tags/list"
    image = deployment.fake_registry.add_image(repo, "v1", [b"a layer of an oddly named repository"])
    assert deployment.get(f"/v2/up.test/{repo}/manifests/v1").body == image.body
    assert deployment.get(f"/v2/up.test/{repo}/manifests/{image.digest}").body == image.body
    assert deployment.get(f"/v2/up.test/{repo}/blobs/{image.layers[0]}").body == b"a layer of an oddly named repository"
    assert {exchange.request.repo for exchange in deployment.fake_registry.received(repo=repo)} == {repo}
