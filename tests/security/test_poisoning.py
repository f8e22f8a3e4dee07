"""What must not get into the cache, or be served from it to other clients."""

import pytest

from tests.security.canaries import WatchedDeployment
from tests.security.conftest import CLIENT
from tests.support import faults
from tests.support.deployment import eventually
from tests.support.fake_registry import DOCKER_MANIFEST, OCI_MANIFEST
from tests.support.raw_http import Request, ScriptedResponse

CONFIG = {"mediaType": "application/json", "digest": f"sha256:{'c' * 64}", "size": 2}
AMBIGUOUS = {
    "an index and an image": {"schemaVersion": 2, "manifests": [], "config": CONFIG, "layers": []},
    "an index with layers": {"schemaVersion": 2, "manifests": [], "layers": []},
    "an image that calls itself an index": {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "config": CONFIG,
        "layers": [],
    },
    "an image that is sent as another": {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": CONFIG,
        "layers": [],
    },
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_k2_an_ambiguous_document(deployment: WatchedDeployment, name: str) -> None:
    """A manifest that two clients could read as two images is 502 by tag and by digest, and is not kept."""
    repo = f"ambiguous-{list(AMBIGUOUS).index(name)}"
    digest = deployment.fake_registry.add_manifest(repo, "v1", AMBIGUOUS[name], OCI_MANIFEST)
    for reference in ("v1", digest):
        assert deployment.get(f"/v2/up.test/{repo}/manifests/{reference}").status == 502
    assert deployment.stored_files(digest) == []


def test_k2_the_first_media_type_of_a_digest_is_kept(deployment: WatchedDeployment) -> None:
    """A document without a media type keeps the one that it was verified with, whatever Content-Type comes later."""
    document = {"schemaVersion": 2, "config": CONFIG, "layers": []}
    digest = deployment.fake_registry.add_manifest("typeless", "v1", document, DOCKER_MANIFEST)
    path = f"/v2/up.test/typeless/manifests/{digest}"
    assert deployment.get(path).header("Content-Type") == DOCKER_MANIFEST
    rule = deployment.fake_registry.on("manifest", faults.header("Content-Type", OCI_MANIFEST), repo="typeless")
    for reference in (digest, "v1", digest):
        response = deployment.get(f"/v2/up.test/typeless/manifests/{reference}")
        assert (response.status, response.header("Content-Type")) == (200, DOCKER_MANIFEST), reference
    deployment.fake_registry.remove_rules(rule)


REJECTED = {
    "a large header": ("GET", {"X_Large": "a" * 20_000}, 431),
    "a meta character": ("GET", {"X_Meta": "a\x07b"}, 400),
    "a method override": ("POST", {"X_HTTP_Method_Override": "GET"}, 405),
    "another override": ("DELETE", {"X_Method_Override": "GET"}, 405),
}


@pytest.mark.parametrize("name", REJECTED)
def test_k3_a_rejected_request_is_not_cached(deployment: WatchedDeployment, name: str) -> None:
    """A rejected request reaches no upstream, and the next client gets the object: no error is cached for it."""
    method, headers, status = REJECTED[name]
    repo = f"rejected-{list(REJECTED).index(name)}"
    image = deployment.fake_registry.add_image(repo, "v1", [repo.encode()])
    for path, body in ((f"manifests/{image.digest}", image.body), (f"blobs/{image.layers[0]}", repo.encode())):
        before = deployment.fake_registry.count()
        assert deployment.request(method, f"/v2/up.test/{repo}/{path}", **headers).status == status
        assert deployment.fake_registry.count() == before
        response = deployment.get(f"/v2/up.test/{repo}/{path}")
        assert (response.status, response.body) == (200, body)


def test_k3_a_method_override_on_get_changes_nothing(deployment: WatchedDeployment) -> None:
    """GET stays GET, with every spelling of such a header."""
    image = deployment.fake_registry.add_image("override", "v1")
    for name in ("X_HTTP_Method_Override", "X_HTTP_Method", "X_Method_Override"):
        assert deployment.get("/v2/up.test/override/manifests/v1", **{name: "DELETE"}).body == image.body
    sent = {
        name.lower() for each in deployment.fake_registry.received(repo="override") for name, _ in each.request.headers
    }
    assert sent == {"host", "user-agent", "accept-encoding", "accept", "cdn-loop"}
    assert {each.request.method for each in deployment.fake_registry.received(repo="override")} == {"HEAD", "GET"}


FALSE_HOSTS = {
    "Host": "evil.test",
    "X_Forwarded_Host": "evil.test",
    "X_Forwarded_Proto": "gopher",
    "X_Forwarded_Prefix": "/evil.test",
    "Forwarded": "host=evil.test",
    "X_Original_URL": "/v2/evil.test/app/manifests/v1",
    "X_Rewrite_URL": "/v2/evil.test/app/manifests/v1",
    "X_Host": "evil.test",
}


def test_k4_headers_that_name_another_host(deployment: WatchedDeployment) -> None:
    """Host and similar headers change no cache key and nothing in a response; the false name is nowhere in it."""
    image = deployment.fake_registry.add_image("places", "v1", [b"a layer in its place"])
    deployment.fake_registry.on(
        "other",
        faults.replaced(200, b'{"name":"places","tags":["a","b","c"]}', ("Content-Type", "application/json")),
        when=lambda request: request.path == "/v2/places/tags/list",
    )
    paths = ["manifests/v1", f"manifests/{image.digest}", f"blobs/{image.layers[0]}", "tags/list?n=1", "blobs/sha256:x"]
    for path in [f"/v2/up.test/places/{path}" for path in paths] + ["/v2/", "/v2/evil.test/a/manifests/v1"]:
        deployment.get(path)
        plain, evil = deployment.get(path), deployment.get(path, **FALSE_HOSTS)
        assert (evil.status, evil.body) == (plain.status, plain.body), path
        assert "evil.test" not in str(evil.headers), path
        assert [name for name, _ in evil.headers] == [name for name, _ in plain.headers], path
    assert deployment.get("/v2/up.test/places/tags/list?n=1", **FALSE_HOSTS).header("Link") == (
        '</v2/up.test/places/tags/list?n=1&last=a>; rel="next"'
    )
    assert deployment.fake_registry.count("manifest", "GET", repo="places") == 1


NOISE = {
    "Set-Cookie": f"session={CLIENT.text}",
    "Vary": "*",
    "Cache-Control": "private, no-store",
    "X-Upstream-Secret": CLIENT.text,
    "Access-Control-Allow-Origin": "*",
    "Strict-Transport-Security": "max-age=1",
    "Server": "an-upstream",
    "Refresh": "0; url=http://evil.test/",
    "Content-Disposition": f"attachment; filename={CLIENT.text}",
    "Expires": "0",
    "WWW-Authenticate": f'Basic realm="{CLIENT.text}"',
    "OCI-Subject": CLIENT.text,
}
EXPECTED_HEADERS = {
    *("content-type", "content-length", "docker-content-digest", "etag", "accept-ranges", "cache-control", "age"),
    *("cache-status", "x-content-type-options", "server", "date"),
}


def test_k5_headers_of_the_upstream_are_not_passed_on(deployment: WatchedDeployment) -> None:
    """A response has Dockyard's headers and no others, cold and cached; a client's canary is in none of them."""

    def noisy(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        for name, value in NOISE.items():
            response = response.with_header(name, value)
        return response

    image = deployment.fake_registry.add_image("noisy", "v1", [b"a layer with many headers"])
    deployment.fake_registry.on(None, noisy, repo="noisy")
    for path in (f"manifests/{image.digest}", "manifests/v1", f"blobs/{image.layers[0]}"):
        for _ in range(2):
            response = deployment.get(f"/v2/up.test/noisy/{path}")
            assert response.status == 200
            assert {name for name, _ in response.headers} <= EXPECTED_HEADERS
            assert response.header("Server") == "granian"
            assert "private" not in (response.header("Cache-Control") or "")


LARGE = {
    "one of 80 KiB": {"X-Large": "a" * 80_000},
    "ninety of 10 KiB": {f"X-Large-{number}": "a" * 10_000 for number in range(90)},
    "a thousand": {f"X-{number}": "a" for number in range(1000)},
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("kind", ["manifests", "blobs"])
def test_k5_too_many_headers(deployment: WatchedDeployment, name: str, kind: str) -> None:
    """An upstream response with more than 64 KiB of headers is 502, and nothing of it is kept."""

    def large(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        return ScriptedResponse.of(
            response.status,
            b"".join(response.body.pieces(0, response.body.size)),
            *response.headers,
            *LARGE[name].items(),
        )

    repo = f"large-{list(LARGE).index(name)}-{kind}"
    image = deployment.fake_registry.add_image(repo, "v1", [repo.encode()])
    digest = image.digest if kind == "manifests" else image.layers[0]
    rule = deployment.fake_registry.on(None, large, repo=repo)
    path = f"/v2/up.test/{repo}/{kind}/{digest}"
    assert deployment.get(path).status == 502
    assert deployment.stored_files(digest) == []
    deployment.fake_registry.remove_rules(rule)
    eventually(lambda: deployment.get(path).status == 200, "it is served again")
