"""Manifests as opaque bytes, the Accept headers sent upstream, and tags that move."""

import random
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support import faults
from tests.support.bodies import digest_of
from tests.support.busy_machine import is_within
from tests.support.deployment import Deployment, eventually, open_deployment
from tests.support.fake_registry import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Change,
    FakeRegistry,
    Image,
)
from tests.support.http_client import Response
from tests.support.raw_http import Request, ScriptedResponse
from tests.support.schema1 import SCHEMA1_SIGNED as SCHEMA1
from tests.support.schema1 import sign

ORAS_ARTIFACT = "application/vnd.cncf.oras.artifact.manifest.v1+json"
DOCKER_ACCEPT = [DOCKER_MANIFEST, DOCKER_LIST, SCHEMA1, OCI_MANIFEST, OCI_INDEX, "application/json"]
CONTAINERD_ACCEPT = f"{DOCKER_MANIFEST}, {DOCKER_LIST}, {OCI_MANIFEST}, {OCI_INDEX}, */*"
SKOPEO_ACCEPT = [OCI_MANIFEST, DOCKER_MANIFEST, SCHEMA1, SCHEMA1.replace("+prettyjws", ""), DOCKER_LIST, OCI_INDEX]
CRANE_ACCEPT = (
    f"{SCHEMA1.replace('+prettyjws', '')},{SCHEMA1},{DOCKER_MANIFEST},{OCI_MANIFEST},{DOCKER_LIST},{OCI_INDEX}"
)
KINDS = {"oci index": OCI_INDEX, "docker list": DOCKER_LIST, "oci manifest": OCI_MANIFEST, "docker v2": DOCKER_MANIFEST}
NEVER_THERE = "sha256:" + "0" * 64


def _add(fake_registry: FakeRegistry, repo: str, kind: str) -> Image:
    docker = kind.startswith("docker")
    if kind in ("oci manifest", "docker v2"):
        return fake_registry.add_image(repo, "v1", [kind.encode()], docker=docker)
    children = [
        fake_registry.add_image(repo, None, [kind.encode(), name], docker=docker) for name in (b"amd64", b"arm64")
    ]
    return fake_registry.add_index(repo, "v1", children, docker=docker)


def _accepting(deployment: Deployment, path: str, lines: list[str]) -> Response:
    """GET with one Accept line for each type, as docker and skopeo send them."""
    head = [f"GET {path} HTTP/1.1", f"Host: {deployment.dockyard.host}", *(f"Accept: {line}" for line in lines), "", ""]
    with deployment.send_raw("\r\n".join(head).encode()) as download:
        download.head()
        body, ended = download.rest()
        return Response(download.status, download.headers, body, ended, 0.0)


def _assert_is(response: Response, image: Image) -> None:
    assert response.status == 200
    assert response.body == image.body
    assert response.is_complete
    assert response.header("Content-Type") == image.media_type
    assert response.header("Docker-Content-Digest") == image.digest
    assert response.header("Content-Length") == str(len(image.body))
    assert response.header("ETag") == f'"{image.digest}"'


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_manifest_for_every_client(deployment: Deployment, kind: str) -> None:
    """Whatever a client accepts, in whatever order, it gets the tag's bytes with their own type and digest."""
    repo = f"kinds/{kind.replace(' ', '-')}"
    image = _add(deployment.fake_registry, repo, kind)
    path = f"/v2/up.test/{repo}/manifests/v1"
    orders = [random.Random(seed).sample(DOCKER_ACCEPT, len(DOCKER_ACCEPT)) for seed in range(50)]
    for lines in (*orders, [CONTAINERD_ACCEPT], SKOPEO_ACCEPT, [CRANE_ACCEPT]):
        _assert_is(_accepting(deployment, path, lines), image)
    head = deployment.head(path, Accept=CONTAINERD_ACCEPT)
    assert (head.status, head.body) == (200, b"")
    assert head.header("Content-Length") == str(len(image.body))
    assert head.header("Docker-Content-Digest") == image.digest
    assert head.header("Content-Type") == image.media_type


@pytest.mark.parametrize("kind", ["oci index", "docker list"])
def test_child_manifests_are_fetched_by_digest_with_their_type(deployment: Deployment, kind: str) -> None:
    """The second step of a pull: the child manifest by digest, with an Accept of exactly its type."""
    repo = f"children/{kind.replace(' ', '-')}"
    docker = kind.startswith("docker")
    child = deployment.fake_registry.add_image(repo, None, [b"a child's layer"], docker=docker)
    deployment.fake_registry.add_index(repo, "v1", [child], docker=docker)
    assert deployment.get(f"/v2/up.test/{repo}/manifests/v1").status == 200
    for _ in range(2):
        _assert_is(deployment.get(f"/v2/up.test/{repo}/manifests/{child.digest}", Accept=child.media_type), child)
    assert deployment.fake_registry.count("manifest", reference=child.digest) == 1


ODD_MANIFESTS: dict[str, tuple[dict[str, Any], str]] = {
    "docker image without mediaType": ({"schemaVersion": 2, "config": {}, "layers": []}, DOCKER_MANIFEST),
    "oci image without mediaType": ({"schemaVersion": 2, "config": {}, "layers": [{}]}, OCI_MANIFEST),
    "docker list without mediaType": ({"schemaVersion": 2, "manifests": []}, DOCKER_LIST),
    "oci index said to be a docker list": ({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}, DOCKER_LIST),
    "docker list said to be an oci index": ({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": []}, OCI_INDEX),
    "no layers": ({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "a/b", "config": {}}, OCI_MANIFEST),
    "no layers and no mediaType": ({"schemaVersion": 2, "config": {}}, OCI_MANIFEST),
    "no manifests": ({"schemaVersion": 2, "mediaType": OCI_INDEX}, OCI_INDEX),
    "no manifests and no mediaType": ({"schemaVersion": 2}, DOCKER_LIST),
    "oras artifact": ({"mediaType": ORAS_ARTIFACT, "artifactType": "a/b", "blobs": []}, ORAS_ARTIFACT),
    "oras artifact without mediaType": ({"artifactType": "a/b", "blobs": []}, ORAS_ARTIFACT),
    "a type of a vendor": ({"schemaVersion": 2, "config": {}, "layers": []}, "application/vnd.example.image.v1+json"),
    "schema 1": ({"schemaVersion": 1, "fsLayers": []}, SCHEMA1.replace("prettyjws", "json")),
}


def test_odd_manifests_keep_their_type(make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry) -> None:
    """By tag and by digest, with GET, HEAD and a range, from each worker, and after a restart without the upstream."""
    digests = {
        name: fake_registry.add_manifest(f"odd/{number}", "v1", *manifest)
        for number, (name, manifest) in enumerate(ODD_MANIFESTS.items())
    }
    deployment = make_deployment(workers=4)
    deployment.wait_for_workers(4)

    def types(name: str) -> set[str | None]:
        paths = [
            f"/v2/up.test/odd/{list(ODD_MANIFESTS).index(name)}/manifests/{each}" for each in ("v1", digests[name])
        ]
        found = [ask(path) for path in paths for ask in (deployment.get, deployment.head) for _ in range(6)]
        found += [deployment.get(path, Range="bytes=0-1") for path in paths]
        assert {response.status for response in found} == {200, 206}
        assert {response.header("Docker-Content-Digest") for response in found} == {digests[name]}
        return {response.header("Content-Type") for response in found}

    expected = {name: {media_type} for name, (_, media_type) in ODD_MANIFESTS.items()}
    assert {name: types(name) for name in ODD_MANIFESTS} == expected
    deployment.dockyard.stop()
    fake_registry.listener.close()
    deployment.dockyard.start()
    assert {name: types(name) for name in ODD_MANIFESTS} == expected


def test_a_manifest_that_was_stored_without_its_type(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """By an earlier version: the type is that of its bytes, else the one of OCI."""
    digest = fake_registry.add_manifest("app", "v1", {"schemaVersion": 2, "config": {}, "layers": []}, DOCKER_MANIFEST)
    deployment = make_deployment()
    path = f"/v2/up.test/app/manifests/{digest}"
    assert deployment.get(path).header("Content-Type") == DOCKER_MANIFEST
    deployment.dockyard.stop()
    shutil.rmtree(deployment.dockyard.storage / "cache" / "types")
    deployment.dockyard.start()
    assert deployment.get(path).header("Content-Type") == OCI_MANIFEST
    assert fake_registry.count("manifest", "GET") == 1


@pytest.mark.parametrize("announced", ["payload", "body", "nothing"])
def test_signed_manifests_of_schema_1(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, announced: str
) -> None:
    """Their digest is that of the payload, and the body is passed on with the signatures, also after a restart."""
    signed = sign()
    digest = digest_of(signed.body) if announced == "body" else signed.digest
    headers = [("Content-Type", SCHEMA1)] + [("Docker-Content-Digest", digest)] * (announced != "nothing")
    for reference in ("v1", digest):
        fake_registry.on("manifest", faults.replaced(200, signed.body, *headers), repo="old", reference=reference)
    deployment = make_deployment(workers=2)
    for _ in range(2):
        for reference in ("v1", digest):
            path = f"/v2/up.test/old/manifests/{reference}"
            for response in [ask(path) for ask in (deployment.get, deployment.head) for _ in range(4)]:
                assert (response.status, response.header("Content-Type")) == (200, SCHEMA1)
                assert response.header("Docker-Content-Digest") == digest
                assert response.header("Content-Length") == str(len(signed.body))
                assert response.body in (b"", signed.body)
        deployment.dockyard.stop()
        fake_registry.listener.close()
        deployment.dockyard.start()
    # Without a digest for HEAD, the tag was requested with GET, and that is the manifest.
    assert fake_registry.count("manifest", "GET", reference=digest) == (announced != "nothing")


@pytest.mark.parametrize("change", ['"tag": "v1"', "signatures", '"alg"'])
def test_a_signed_manifest_that_was_changed(deployment: Deployment, change: str) -> None:
    """With other members than the digest covers it is 502, and not kept. The signatures are not covered by it."""
    signed = sign(before='"x": 1,') if change == "signatures" else sign()
    body = signed.body if change == "signatures" else signed.body.replace(change.encode(), change.upper().encode())
    assert body != sign().body
    headers = [("Content-Type", SCHEMA1), ("Docker-Content-Digest", signed.digest)]
    repo = f"old/{len(change)}"
    deployment.fake_registry.on("manifest", faults.replaced(200, body, *headers), repo=repo)
    for reference in ("v1", signed.digest):
        response = deployment.get(f"/v2/up.test/{repo}/manifests/{reference}")
        assert response.status == (200 if change == '"alg"' else 502)
    assert bool(deployment.stored_files(signed.digest)) == (change == '"alg"')


def test_upstream_requests_accept_every_type(deployment: Deployment) -> None:
    """On a miss the upstream request accepts all types, whatever the client accepts."""
    deployment.fake_registry.add_image("accept", "v1")
    deployment.get("/v2/up.test/accept/manifests/v1", Accept=DOCKER_MANIFEST)
    for exchange in deployment.fake_registry.received("manifest", repo="accept"):
        accepted = {part.split(";")[0].strip() for part in (exchange.request.header("Accept") or "").split(",")}
        assert {OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST} <= accepted
        assert exchange.request.header("Accept-Encoding") == "identity"


@pytest.mark.parametrize("first", [None, "*/*", DOCKER_MANIFEST])
def test_a_schema1_upstream_never_poisons_a_tag(deployment: Deployment, first: str | None) -> None:
    """An upstream that sends schema 1 without an Accept header never does so: Dockyard sends its full list."""
    repo = f"negotiated/{len(first or '')}"
    image = _add(deployment.fake_registry, repo, "oci index")
    schema1 = b'{"schemaVersion": 1, "name": "x", "tag": "v1", "fsLayers": [], "history": []}'
    deployment.fake_registry.on(
        "manifest",
        faults.replaced(200, schema1, ("Content-Type", SCHEMA1), ("Docker-Content-Digest", digest_of(schema1))),
        repo=repo,
        when=lambda request: OCI_INDEX not in (request.header("Accept") or ""),
    )
    path = f"/v2/up.test/{repo}/manifests/v1"
    _assert_is(deployment.get(path, **({} if first is None else {"Accept": first})), image)
    _assert_is(_accepting(deployment, path, DOCKER_ACCEPT), image)


def test_a_digest_is_served_whatever_is_accepted(deployment: Deployment) -> None:
    """A digest names one byte string: another Accept gets it too, never 406."""
    image = _add(deployment.fake_registry, "other/type", "oci manifest")
    for _ in range(2):
        _assert_is(deployment.get(f"/v2/up.test/other/type/manifests/{image.digest}", Accept=DOCKER_LIST), image)


def test_a_manifest_that_does_not_match_its_digest(deployment: Deployment) -> None:
    """A manifest whose bytes do not match the requested digest is 502 and not kept; the next one is served."""
    image = _add(deployment.fake_registry, "wrong/bytes", "oci manifest")
    other = image.body.replace(b"schemaVersion", b"schemaversion")
    rule = deployment.fake_registry.on("manifest", faults.with_body(other), reference=image.digest, method="GET")
    response = deployment.get(f"/v2/up.test/wrong/bytes/manifests/{image.digest}")
    assert (response.status, response.error) == (502, "UNKNOWN")
    deployment.assert_no_leak(response)
    assert deployment.stored_files(image.digest) == []
    deployment.fake_registry.remove_rules(rule)
    _assert_is(deployment.get(f"/v2/up.test/wrong/bytes/manifests/{image.digest}"), image)


def test_a_digest_header_that_does_not_match_the_body(deployment: Deployment) -> None:
    """By tag: the upstream names one digest and sends another body. The response is 502, and nothing is kept."""
    image = _add(deployment.fake_registry, "wrong/header", "oci manifest")
    lie = faults.replaced(200, image.body, ("Content-Type", OCI_MANIFEST), ("Docker-Content-Digest", NEVER_THERE))
    rule = deployment.fake_registry.on("manifest", lie, repo="wrong/header")
    response = deployment.get("/v2/up.test/wrong/header/manifests/v1")
    assert (response.status, response.error) == (502, "UNKNOWN")
    assert deployment.stored_files(NEVER_THERE) == []
    assert deployment.stored_files(image.digest) == []
    deployment.fake_registry.remove_rules(rule)
    _assert_is(deployment.get("/v2/up.test/wrong/header/manifests/v1"), image)


NO_MANIFESTS = {
    "html": (b"<html>Sign in</html>", "text/html"),
    "empty": (b"", OCI_MANIFEST),
    "an error page in JSON": (b'{"error": "not today"}', OCI_MANIFEST),
    "both an index and an image": (b'{"schemaVersion": 2, "manifests": [], "config": {}, "layers": []}', OCI_INDEX),
    "of another type than its media type": (
        b'{"schemaVersion": 2, "mediaType": "%s", "config": {}, "layers": []}' % OCI_MANIFEST.encode(),
        OCI_INDEX,
    ),
    "a depth bomb": (b"[" * 100_000, OCI_MANIFEST),
}


@pytest.mark.parametrize("name", NO_MANIFESTS)
def test_a_document_that_is_no_manifest_is_rejected(deployment: Deployment, name: str) -> None:
    """A document that is no manifest, or an ambiguous one, is 502 and not kept, even though its digest matches."""
    body, content_type = NO_MANIFESTS[name]
    repo = f"no-manifest/{len(body)}"
    digest = deployment.fake_registry.add_manifest(repo, "v1", body, content_type)
    for reference in ("v1", digest):
        response = deployment.get(f"/v2/up.test/{repo}/manifests/{reference}")
        assert (response.status, response.error) == (502, "UNKNOWN")
        assert is_within(response.took_s, 1)
    assert deployment.stored_files(digest) == []


def test_a_large_manifest(deployment: Deployment) -> None:
    """4,000,000 bytes of manifest are passed on, cold and cached."""
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {}, "layers": [], "annotations": {"x": ""}}
    document["annotations"] = {"x": "y" * 3_999_750}
    digest = deployment.fake_registry.add_manifest("large", "v1", document, OCI_MANIFEST)
    body = deployment.fake_registry.manifest_body("large", digest)
    assert 3_999_000 < len(body) <= 4_000_000
    for reference in ("v1", digest, digest):
        response = deployment.get(f"/v2/up.test/large/manifests/{reference}")
        assert (response.status, response.body == body) == (200, True)


def _nine_mebibytes(request: Request, response: ScriptedResponse) -> ScriptedResponse:
    return faults.with_body(b'{"schemaVersion": 2, "layers": [], "config": {}, "x": "' + b"x" * (9 << 20) + b'"}')(
        request, response
    )


@pytest.mark.parametrize("change", [_nine_mebibytes, faults.endless()], ids=["9 MiB", "endless"])
@pytest.mark.parametrize("reference", ["v1", "digest"])
def test_a_manifest_over_the_size_limit(deployment: Deployment, change: Change, reference: str) -> None:
    """Reading stops at the limit, the connection is closed, and the response is 502."""
    image = deployment.fake_registry.add_image("over/the/cap", "v1")
    rule = deployment.fake_registry.on("manifest", change, method="GET", repo="over/the/cap")
    requested = image.digest if reference == "digest" else "v1"
    before = deployment.fake_registry.sent_bytes("manifest")
    began = time.monotonic()
    response = deployment.get(f"/v2/up.test/over/the/cap/manifests/{requested}")
    assert (response.status, response.error) == (502, "UNKNOWN")
    assert is_within(time.monotonic() - began, 4)
    eventually(
        lambda: all(e.ended for e in deployment.fake_registry.received("manifest", "GET")),
        "the connection upstream is closed",
    )
    assert (
        deployment.fake_registry.sent_bytes("manifest") - before < 48 << 20
    )  # two attempts, each with full socket buffers
    deployment.fake_registry.remove_rules(rule)


HEAD_FLAWS: dict[str, Change] = {
    "no digest": faults.without("Docker-Content-Digest"),
    "no length": faults.without("Content-Length"),
    "neither": faults.without("Docker-Content-Digest", "Content-Length"),
    "405": faults.error_response(405, "UNSUPPORTED"),
    "401": faults.error_response(401, "UNAUTHORIZED"),
    "garbage digest": faults.header("Docker-Content-Digest", "sha256:garbage"),
    "two digests": faults.header("Docker-Content-Digest", NEVER_THERE, "sha256:garbage"),
}


@pytest.fixture(scope="module")
def odd_deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment of its own: Dockyard may remember that its upstream's HEAD does not work."""
    with FakeRegistry() as fake_registry, open_deployment(fake_registry, tmp_path_factory.mktemp("odd")) as deployment:
        yield deployment


@pytest.mark.parametrize("flaw", HEAD_FLAWS)
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_tags_of_an_upstream_without_usable_head(odd_deployment: Deployment, flaw: str, method: str) -> None:
    """Where HEAD does not work GET is used: the client gets the computed digest and length all the same."""
    repo = f"head/{method.lower()}/{flaw.replace(' ', '-')}"
    image = odd_deployment.fake_registry.add_image(repo, "v1", [flaw.encode()])
    odd_deployment.fake_registry.on("manifest", HEAD_FLAWS[flaw], method="HEAD", repo=repo)
    response = odd_deployment.request(method, f"/v2/up.test/{repo}/manifests/v1")
    assert response.status == 200
    assert response.header("Docker-Content-Digest") == image.digest
    assert response.header("Content-Length") == str(len(image.body))
    assert response.body == (image.body if method == "GET" else b"")


def test_a_digest_header_missing_on_get_too(odd_deployment: Deployment) -> None:
    """When the upstream never sends digests, they are computed."""
    image = odd_deployment.fake_registry.add_image("no/digests", "v1")
    odd_deployment.fake_registry.on("manifest", faults.without("Docker-Content-Digest", "ETag"), repo="no/digests")
    for _ in range(2):
        _assert_is(odd_deployment.get("/v2/up.test/no/digests/manifests/v1"), image)


@pytest.mark.parametrize("flaw", ["no digest", "no length", "405", "401", "garbage digest"])
def test_blobs_of_an_upstream_without_usable_head(odd_deployment: Deployment, flaw: str) -> None:
    """HEAD of a blob finds the size by other means, and never starts a download."""
    blob = f"a blob with {flaw}".encode() * 1000
    digest = odd_deployment.fake_registry.add_blob(blob)
    odd_deployment.fake_registry.on("blob", HEAD_FLAWS[flaw], method="HEAD", reference=digest)
    response = odd_deployment.head(f"/v2/up.test/app/blobs/{digest}")
    assert (response.status, response.body) == (200, b"")
    assert response.header("Content-Length") == str(len(blob))
    assert response.header("Docker-Content-Digest") == digest
    assert all(
        e.request.header("Range") == "bytes=0-0"
        for e in odd_deployment.fake_registry.received("blob", "GET", reference=digest)
    )


def test_a_tag_that_moves_between_head_and_get(deployment: Deployment) -> None:
    """The GET uses the digest that HEAD returned, so the old image is complete, and the next pull gets the new one."""
    old = deployment.fake_registry.add_image("moving", "v1", [b"old"])

    def move(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        deployment.fake_registry.add_image("moving", "v1", [b"new"])
        return response

    deployment.fake_registry.on("manifest", move, method="HEAD", reference="v1", repo="moving", times=1)
    _assert_is(deployment.get("/v2/up.test/moving/manifests/v1"), old)
    assert [e.request.reference for e in deployment.fake_registry.received("manifest", "GET", repo="moving")] == [
        old.digest
    ]
    assert deployment.get("/v2/up.test/moving/manifests/v1").body == deployment.fake_registry.manifest_body(
        "moving", "v1"
    )


def test_a_hundred_clients_while_a_tag_moves(deployment: Deployment) -> None:
    """Every response is one consistent image: the body matches the digest header, and the last responses are new."""
    images = [deployment.fake_registry.add_image("moving", "v1", [b"first"])]
    with ThreadPoolExecutor(20) as pool:
        requested = [pool.submit(deployment.get, "/v2/up.test/moving/manifests/v1") for _ in range(50)]
        images.append(deployment.fake_registry.add_image("moving", "v1", [b"second"]))
        requested += [pool.submit(deployment.get, "/v2/up.test/moving/manifests/v1") for _ in range(50)]
        responses = [each.result() for each in requested]
    known = {image.digest: image for image in images}
    for response in responses:
        _assert_is(response, known[response.header("Docker-Content-Digest") or ""])
    _assert_is(deployment.get("/v2/up.test/moving/manifests/v1"), images[1])


def test_an_unchanged_tag_costs_one_head(deployment: Deployment) -> None:
    """A cached tag is checked by one HEAD and fetched by none."""
    deployment.fake_registry.add_image("unchanged", "v1")
    path = "/v2/up.test/unchanged/manifests/v1"
    deployment.get(path)
    before = (
        deployment.fake_registry.count("manifest", "HEAD", repo="unchanged"),
        deployment.fake_registry.count("manifest", "GET", repo="unchanged"),
    )
    assert deployment.get(path).status == 200
    after = (
        deployment.fake_registry.count("manifest", "HEAD", repo="unchanged"),
        deployment.fake_registry.count("manifest", "GET", repo="unchanged"),
    )
    assert (after[0] - before[0], after[1] - before[1]) == (1, 0)


def test_a_moved_tag_is_served_at_once(deployment: Deployment) -> None:
    """A tag that moved upstream is the new image at the next request; the old digest is still served."""
    old = deployment.fake_registry.add_image("changed", "v1", [b"old"])
    path = "/v2/up.test/changed/manifests"
    _assert_is(deployment.get(f"{path}/v1"), old)
    new = deployment.fake_registry.add_image("changed", "v1", [b"new"])
    _assert_is(deployment.get(f"{path}/v1"), new)
    requested = deployment.fake_registry.count("manifest", repo="changed")
    _assert_is(deployment.get(f"{path}/{old.digest}"), old)
    assert deployment.fake_registry.count("manifest", repo="changed") == requested


def test_a_deleted_tag_is_not_found(deployment: Deployment) -> None:
    """A 404 is no outage: the tag stays deleted, while its digest is still served."""
    image = deployment.fake_registry.add_image("deleted", "v1")
    path = "/v2/up.test/deleted/manifests"
    _assert_is(deployment.get(f"{path}/v1"), image)
    deployment.fake_registry.remove("deleted", "v1")
    deployment.fake_registry.remove("deleted", image.digest)
    for _ in range(2):
        response = deployment.get(f"{path}/v1")
        assert (response.status, response.error) == (404, "MANIFEST_UNKNOWN")
    _assert_is(deployment.get(f"{path}/{image.digest}"), image)


def test_a_new_tag_is_served_at_once(deployment: Deployment) -> None:
    """There is no negative cache: a tag that was unknown a moment ago is served once it was pushed."""
    path = "/v2/up.test/appears/manifests/v1"
    assert deployment.get(path).status == 404
    image = deployment.fake_registry.add_image("appears", "v1")
    _assert_is(deployment.get(path), image)


def test_no_upstream_check_within_the_check_interval(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """`upstream.check_interval`: a tag that was just checked counts as fresh."""
    image = fake_registry.add_image("fresh", "v1")
    deployment = make_deployment(upstream={"check_interval": "1h"})
    for _ in range(3):
        _assert_is(deployment.get("/v2/up.test/fresh/manifests/v1"), image)
    assert fake_registry.count(reference="v1") == 1
