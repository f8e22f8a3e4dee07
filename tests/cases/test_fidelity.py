"""What the upstream has is passed on as it is: types, sizes, shapes of manifests, names, URLs of redirects."""

import gzip
import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.support import faults
from tests.support.bodies import digest_of
from tests.support.certificates import server_context
from tests.support.deployment import Deployment, upstream
from tests.support.fake_auth import FakeTokenService
from tests.support.fake_registry import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    FakeRegistry,
)
from tests.support.raw_http import Request, ScriptedResponse
from tests.support.schema1 import SCHEMA1_SIGNED, sign

EMPTY = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(b"{}"), "size": 2}
ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"
ORAS_ARTIFACT = "application/vnd.cncf.oras.artifact.manifest.v1+json"


def descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    """The descriptor of some content."""
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


def test_a_signed_schema_1_manifest_is_passed_on(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """Its digest is that of the payload without the signatures: by tag, by digest, and after a restart."""
    manifest = sign()
    answer = ScriptedResponse.of(
        200, manifest.body, ("Content-Type", SCHEMA1_SIGNED), ("Docker-Content-Digest", manifest.digest)
    )
    for reference in ("v1", manifest.digest):
        fake_registry.on("manifest", lambda *_: answer, reference=reference)
    deployment = make_deployment()
    for _ in range(2):
        for reference in ("v1", manifest.digest):
            response = deployment.get(f"/v2/up.test/org/old/manifests/{reference}")
            assert (response.status, response.body == manifest.body) == (200, True)
            assert response.header("Content-Type") == SCHEMA1_SIGNED
            assert response.header("Docker-Content-Digest") == manifest.digest
        deployment.dockyard.stop()
        deployment.dockyard.start()


@pytest.mark.parametrize(
    "path",
    [
        "/cdn/a%2fb?Policy=x|y&sig=ab%2Fcd",
        "/cdn/a%2Fb?sig=ab%2fcd",
        "/cdn/a?list[1]=x",
        "/cdn/a?x=100%&sig=ab%2Fcd",
        "/cdn/a/./b/../c?sig=1",
        "/cdn//a//b?sig=1",
        "/cdn/a?sig=a+b%20c&empty=&flag",
        "/cdn/%7Eme~?a=~%7E",
        "/cdn/a;v=1,2?x=(1)'*!",
    ],
)
def test_the_url_of_a_redirect_is_requested_as_it_is_written(deployment: Deployment, name: str, path: str) -> None:
    """Signatures are over the bytes of a URL."""
    content = os.urandom(1000)
    layer = deployment.fake_registry.add_blob(content)
    deployment.fake_registry.on("blob", faults.redirected(path))
    for kind in ("cdn", "other"):
        deployment.fake_registry.on(kind, faults.replaced(200, content), when=lambda request: request.target == path)
    response = deployment.get(f"/v2/up.test/{name}/blobs/{layer}")
    assert (response.status, response.body) == (200, content)
    assert path in [each.request.target for each in deployment.fake_registry.received()]


@pytest.mark.parametrize("said", ["0", None])
def test_a_head_of_a_blob_has_its_size(deployment: Deployment, name: str, said: str | None) -> None:
    """A blob that is not empty has not 0 bytes, whatever the response to HEAD says."""
    layer = deployment.fake_registry.add_blob(os.urandom(341))

    def lie(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        bare = faults.without("Content-Length")(request, response)
        return bare if said is None else bare.with_header("Content-Length", said)

    deployment.fake_registry.on("blob", lie, method="HEAD")
    response = deployment.head(f"/v2/up.test/{name}/blobs/{layer}")
    assert (response.status, response.header("Content-Length")) == (200, "341")


def test_a_head_of_the_empty_blob_has_size_0(deployment: Deployment, name: str) -> None:
    """The one blob of each algorithm that has 0 bytes."""
    for algorithm in ("sha256", "sha512"):
        empty = deployment.fake_registry.add_blob(b"", algorithm=algorithm)
        response = deployment.head(f"/v2/up.test/{name}/blobs/{empty}")
        assert (response.status, response.header("Content-Length")) == (200, "0")


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "an image without layers": (
        OCI_MANIFEST,
        {"mediaType": OCI_MANIFEST, "artifactType": "example/a", "config": EMPTY},
    ),
    "layers: null": (OCI_MANIFEST, {"mediaType": OCI_MANIFEST, "config": EMPTY, "layers": None}),
    "an index without manifests": (OCI_INDEX, {"mediaType": OCI_INDEX}),
    "an ORAS artifact": (ORAS_ARTIFACT, {"mediaType": ORAS_ARTIFACT, "artifactType": "example/a", "blobs": []}),
    "an OCI artifact": (ARTIFACT, {"mediaType": ARTIFACT, "artifactType": "example/a", "blobs": []}),
    "an OCI index with Docker's type": (DOCKER_LIST, {"mediaType": OCI_INDEX, "manifests": []}),
    "a Docker list with OCI's type": (OCI_INDEX, {"mediaType": DOCKER_LIST, "manifests": []}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_manifests_of_unusual_shapes_are_passed_on(deployment: Deployment, name: str, shape: str) -> None:
    """The digest is right, and the type says what it is."""
    media_type, document = SHAPES[shape]
    digest = deployment.fake_registry.add_manifest(name, "v1", {"schemaVersion": 2, **document}, media_type)
    for reference in ("v1", digest):
        response = deployment.get(f"/v2/up.test/{name}/manifests/{reference}")
        assert (response.status, response.header("Docker-Content-Digest")) == (200, digest)
        assert response.body == deployment.fake_registry.manifest_body(name, digest)
        assert response.header("Content-Type") in {media_type, document["mediaType"]}


@pytest.mark.parametrize("is_docker", [True, False], ids=["docker", "oci"])
def test_the_type_of_a_manifest_is_what_the_upstream_said(
    make_deployment: Callable[..., Deployment],
    fake_registry: FakeRegistry,
    is_docker: bool,  # noqa: FBT001
) -> None:
    """Without a mediaType in it: the same type from each worker, after a restart, and with the upstream away."""
    config, layer = (DOCKER_CONFIG, DOCKER_LAYER) if is_docker else (OCI_CONFIG, OCI_LAYER)
    media_type = DOCKER_MANIFEST if is_docker else OCI_MANIFEST
    document = {
        "schemaVersion": 2,
        "config": descriptor(config, b"{}"),
        "layers": [descriptor(layer, b"layer")],
    }
    digest = fake_registry.add_manifest("org/app", "v1", document, media_type)
    deployment = make_deployment(workers=2)
    paths = [f"/v2/up.test/org/app/manifests/{reference}" for reference in ("v1", digest)]
    seen = {deployment.get(path).header("Content-Type") for path in paths * 8}
    deployment.dockyard.stop()
    deployment.dockyard.start()
    seen |= {deployment.get(path).header("Content-Type") for path in paths * 4}
    fake_registry.listener.close()
    seen |= {deployment.get(path).header("Content-Type") for path in paths * 4}
    assert seen == {media_type}


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "zstd", "br"])
def test_a_layer_that_is_labelled_as_encoded_is_passed_on(deployment: Deployment, name: str, encoding: str) -> None:
    """Web servers label a compressed layer so: its bytes are those of its digest."""
    content = gzip.compress(os.urandom(100_000))
    layer = deployment.fake_registry.add_blob(content)
    deployment.fake_registry.on("blob", faults.header("Content-Encoding", encoding))
    response = deployment.get(f"/v2/up.test/{name}/blobs/{layer}")
    assert (response.status, response.body == content) == (200, True)
    assert response.header("Content-Encoding") is None
    assert response.header("Content-Length") == str(len(content))


def test_a_manifest_that_is_compressed_without_being_asked_for_is_unpacked(deployment: Deployment, name: str) -> None:
    """Some registries compress whatever was asked for; digest and bytes are those of the manifest."""
    image = deployment.fake_registry.add_image(name, "v1")
    packed = gzip.compress(image.body)

    def compress(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        return faults.with_body(packed)(request, response).with_header("Content-Encoding", "gzip")

    deployment.fake_registry.on("manifest", compress)
    response = deployment.get(f"/v2/up.test/{name}/manifests/v1")
    assert (response.status, response.body == image.body) == (200, True)
    assert response.header("Docker-Content-Digest") == image.digest


@pytest.mark.parametrize("media_type", ["text/html", "text/html; charset=utf-8", "text/plain", "application/json"])
def test_a_blob_may_have_any_type(deployment: Deployment, name: str, media_type: str) -> None:
    """Its digest tells whether it is the blob or a page of somebody else."""
    page = f"<!doctype html><p>documentation of {name}</p>".encode()
    layer = deployment.fake_registry.add_blob(page)
    deployment.fake_registry.on("blob", faults.header("Content-Type", media_type))
    response = deployment.get(f"/v2/up.test/{name}/blobs/{layer}")
    assert (response.status, response.body) == (200, page)


def test_a_page_in_place_of_a_blob_is_not_served(deployment: Deployment, name: str) -> None:
    """A sign-in page has another digest."""
    layer = deployment.fake_registry.add_blob(os.urandom(1000))
    deployment.fake_registry.on("blob", faults.html_page())
    assert deployment.get(f"/v2/up.test/{name}/blobs/{layer}").status == 502


@pytest.mark.parametrize(
    "path",
    [
        "/v2/index.docker.io/library/alpine/manifests/v1",
        "/v2/registry-1.docker.io/library/alpine/manifests/v1",
        "/v2/registry.hub.docker.com/library/alpine/manifests/v1",
        "/v2/index.docker.io/alpine/manifests/v1",
        "/index.docker.io/v2/library/alpine/manifests/v1",
        "/v2/library/alpine/manifests/v1?ns=docker.io:443",
        "/v2/library/alpine/manifests/v1?ns=index.docker.io",
        "/v2/library/alpine/manifests/v1?ns=registry-1.docker.io:443",
        "/v2/docker.io/library/alpine/manifests/v1",
    ],
)
def test_docker_hub_has_other_names(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, path: str
) -> None:
    """In the path as in `ns`; with one cache key."""
    image = fake_registry.add_image("library/alpine", "v1")
    deployment = make_deployment(upstreams=[upstream("docker.io", fake_registry.url)])
    response = deployment.get(path)
    assert (response.status, response.body == image.body) == (200, True)
    assert {each.request.repo for each in fake_registry.received("manifest")} == {"library/alpine"}
    assert (deployment.dockyard.storage / "cache/manifests/docker.io/library/alpine/tags/v1").is_file()


def test_a_prefix_without_a_dot_is_named_at_start(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """It may be the first part of a name on Docker Hub, which is then another image."""
    deployment = make_deployment(
        upstreams=[upstream("docker.io", fake_registry.url), upstream("internal", fake_registry.url)]
    )
    log = deployment.wait_for_log("upstreams[1].prefix: internal has no dot")
    assert "upstreams[0].prefix" not in log


@contextmanager
def tls_registry(
    fake_registry: FakeRegistry, tmp_path: Path, context: ssl.SSLContext, ca: bytes
) -> Iterator[dict[str, Any]]:
    """A listener with TLS, and the upstream that trusts its authority."""
    listener = fake_registry.listen("tls", "127.0.0.1", tls=context)
    (tmp_path / "ca.pem").write_bytes(ca)
    yield upstream("corp.test", f"https://localhost:{listener.port}", ca_file=str(tmp_path / "ca.pem"))


def test_a_realm_without_tls_on_the_host_of_the_registry_is_asked_with_tls(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, tmp_path: Path
) -> None:
    """A registry behind a proxy that ends TLS writes http: into the realm."""
    authority = trustme.CA()
    image = fake_registry.add_image("org/app", "v1")
    context = server_context(authority, "localhost")
    with tls_registry(fake_registry, tmp_path, context, authority.cert_pem.bytes()) as corp:
        port = fake_registry.listeners["tls"].port
        FakeTokenService(fake_registry, realm=f"http://localhost:{port}/token")
        response = make_deployment(upstreams=[corp]).get("/v2/corp.test/org/app/manifests/v1")
        assert (response.status, response.body == image.body) == (200, True)
        assert {each.request.listener for each in fake_registry.received("token")} == {"tls"}


def test_the_reason_is_said_when_a_certificate_is_not_trusted(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, tmp_path: Path
) -> None:
    """Without it operators cannot tell an unknown authority from a certificate that is refused for its form."""
    context = server_context(trustme.CA(), "localhost")
    other = trustme.CA().cert_pem.bytes()
    with tls_registry(fake_registry, tmp_path, context, other) as corp:
        deployment = make_deployment(upstreams=[corp])
        assert deployment.get("/v2/corp.test/org/app/manifests/v1").status in {502, 503}
        deployment.wait_for_log("not from a known certificate authority")


STRICT_PYTHON = """
import ssl
make = ssl.create_default_context
def create_default_context(*arguments, **named):
    context = make(*arguments, **named)
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
ssl.create_default_context = create_default_context
"""


def test_a_corporate_authority_without_key_usage_is_accepted(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, tmp_path: Path
) -> None:
    """Python 3.13 refuses such certificates by default, curl and Go accept them: accepted when it is a `ca_file`."""
    authority, leaf = make_lenient_certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf)
    image = fake_registry.add_image("org/app", "v1")
    (tmp_path / "sitecustomize.py").write_text(STRICT_PYTHON)
    with tls_registry(fake_registry, tmp_path, context, authority) as corp:
        deployment = make_deployment(upstreams=[corp], environ={"PYTHONPATH": str(tmp_path)})
        response = deployment.get("/v2/corp.test/org/app/manifests/v1")
        assert (response.status, response.body == image.body) == (200, True), deployment.dockyard.read_log()


def make_lenient_certificates(directory: Path) -> tuple[bytes, Path]:
    """A root without keyUsage, and a certificate for localhost without an authority key identifier."""
    import datetime as dt  # noqa: PLC0415  only here

    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.x509.oid import NameOID  # noqa: PLC0415

    def build(name: str, issuer: str, key: Any, signer: Any, extension: Any, *, critical: bool) -> Any:
        now = dt.datetime.now(dt.UTC)
        names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in (name, issuer)]
        builder = x509.CertificateBuilder().subject_name(names[0]).issuer_name(names[1]).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - dt.timedelta(days=1))
        builder = builder.not_valid_after(now + dt.timedelta(days=30)).add_extension(extension, critical=critical)
        return builder.sign(signer, hashes.SHA256())

    root_key, leaf_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = build("corp", "corp", root_key, root_key, x509.BasicConstraints(ca=True, path_length=None), critical=True)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    leaf = build("localhost", "corp", leaf_key, root_key, names, critical=False)
    pem = serialization.Encoding.PEM
    key = leaf_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / "leaf.pem").write_bytes(leaf.public_bytes(pem) + key)
    return root.public_bytes(pem), directory / "leaf.pem"
