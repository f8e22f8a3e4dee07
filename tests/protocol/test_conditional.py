"""Case T39: validators, and the headers that caches and clients read."""

import email.utils
from collections.abc import Callable
from random import Random

import pytest

from tests.support.deployment import Deployment, parse_cache_status
from tests.support.fake_registry import FakeRegistry, Image
from tests.support.http_client import Response
from tests.support.raw_http import Request, ScriptedResponse

BLOB = Random(39).randbytes(5000)
OTHER = "sha256:" + "9" * 64


@pytest.fixture(scope="module")
def image(deployment: Deployment) -> Image:
    """Give an image of which everything is warm."""
    image = deployment.fake_registry.add_image("app", "v1", [BLOB])
    for path in _paths(image).values():
        assert deployment.get(path).status == 200
    return image


def _paths(image: Image) -> dict[str, str]:
    return {
        "tag": "/v2/up.test/app/manifests/v1",
        "digest": f"/v2/up.test/app/manifests/{image.digest}",
        "blob": f"/v2/up.test/app/blobs/{image.layers[0]}",
    }


def _digest(image: Image, what: str) -> str:
    return image.layers[0] if what == "blob" else image.digest


MATCHING = {
    "quoted": '"{digest}"',
    "unquoted": "{digest}",
    "weak": 'W/"{digest}"',
    "list": '"x", "{other}" , W/"{digest}"',
    "star": "*",
}


@pytest.mark.parametrize("what", ["tag", "digest", "blob"])
@pytest.mark.parametrize("spelling", MATCHING)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_the_client_has_already(
    deployment: Deployment, image: Image, what: str, spelling: str, method: str
) -> None:
    """A matching `If-None-Match`, however it is spelt, is 304 with the validator and no body."""
    digest = _digest(image, what)
    validator = MATCHING[spelling].format(digest=digest, other=OTHER)
    response = deployment.request(method, _paths(image)[what], If_None_Match=validator)
    assert (response.status, response.body) == (304, b"")
    assert response.header("ETag") == f'"{digest}"'
    assert response.header("Docker-Content-Digest") == digest
    assert response.header("Cache-Control")
    assert parse_cache_status(response)[""] == "Dockyard"


@pytest.mark.parametrize("what", ["tag", "digest", "blob"])
@pytest.mark.parametrize("validator", [f'"{OTHER}"', OTHER, f'W/"{OTHER}"', '""', "garbage, ,"])
def test_what_the_client_does_not_have(deployment: Deployment, image: Image, what: str, validator: str) -> None:
    """A validator of something else gets the whole thing."""
    response = deployment.get(_paths(image)[what], If_None_Match=validator)
    assert response.status == 200
    assert response.body == (BLOB if what == "blob" else image.body)


def test_if_none_match_is_looked_at_before_range(deployment: Deployment, image: Image) -> None:
    """A match is 304 whatever range is asked; no match leaves the range as it is."""
    path, digest = _paths(image)["blob"], image.layers[0]
    assert deployment.get(path, If_None_Match=f'"{digest}"', Range="bytes=0-9").status == 304
    response = deployment.get(path, If_None_Match=f'"{OTHER}"', Range="bytes=0-9")
    assert (response.status, response.body) == (206, BLOB[:10])


@pytest.mark.parametrize(
    ("validator", "status"),
    [
        ('"{digest}"', 206),
        (f'"{OTHER}"', 200),
        ('W/"{digest}"', 200),
        (email.utils.formatdate(0, usegmt=True), 200),
        ("garbage", 200),
    ],
)
def test_if_range(deployment: Deployment, image: Image, validator: str, status: int) -> None:
    """The range holds only for exactly the bytes that the client has a part of; else it gets all of them."""
    if_range = validator.format(digest=image.layers[0])
    response = deployment.get(_paths(image)["blob"], Range="bytes=100-199", If_Range=if_range)
    assert (response.status, response.body) == ((206, BLOB[100:200]) if status == 206 else (200, BLOB))


def test_an_open_range_of_a_manifest(deployment: Deployment, image: Image) -> None:
    """The parallel fetch of containerd sends `bytes=0-` for manifests too: 206 or 200 with all of it."""
    for what in ("tag", "digest"):
        response = deployment.get(_paths(image)[what], Range="bytes=0-")
        assert response.status in (200, 206)
        assert response.body == image.body


def _assert_common(response: Response, digest: str, size: int) -> None:
    assert response.header("ETag") == f'"{digest}"'
    assert response.header("Docker-Content-Digest") == digest
    assert response.header("Content-Length") == str(size)
    assert response.header("X-Content-Type-Options") == "nosniff"
    assert response.header("Warning") is None
    assert response.header("Last-Modified") is None
    assert response.header("Set-Cookie") is None
    assert int(response.header("Age") or 0) >= 0


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("what", ["digest", "blob"])
def test_headers_of_what_never_changes(deployment: Deployment, image: Image, what: str, method: str) -> None:
    """Content by digest may be kept for ever by everybody, and says that it was a hit."""
    size = len(BLOB) if what == "blob" else len(image.body)
    response = deployment.request(method, _paths(image)[what])
    _assert_common(response, _digest(image, what), size)
    control = {part.strip() for part in (response.header("Cache-Control") or "").split(",")}
    assert {"public", "max-age=31536000", "immutable"} <= control
    status = parse_cache_status(response)
    assert (status[""], status["hit"]) == ("Dockyard", True)
    assert int(str(status["ttl"])) > 0
    assert "fwd" not in status
    if what == "blob":
        assert response.header("Accept-Ranges") == "bytes"
        assert response.header("Content-Type") == "application/octet-stream"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_headers_of_a_tag(deployment: Deployment, image: Image, method: str) -> None:
    """A tag is to be asked for again each time, and says that it was just compared with the upstream's."""
    response = deployment.request(method, _paths(image)["tag"])
    _assert_common(response, image.digest, len(image.body))
    assert (response.header("Cache-Control") or "").startswith("no-cache")
    status = parse_cache_status(response)
    assert (status[""], status["fwd"]) == ("Dockyard", "stale")
    assert "hit" not in status
    assert int(response.header("Age") or 0) <= 1


def test_cache_status_of_cold_content(deployment: Deployment) -> None:
    """A miss went forward and was stored; a tag that moved as well."""
    image = deployment.fake_registry.add_image("cold", "v1", [b"a cold layer"])
    blob = parse_cache_status(deployment.get(f"/v2/up.test/cold/blobs/{image.layers[0]}"))
    assert (blob["fwd"], blob.get("hit")) == ("uri-miss", None)
    tag = parse_cache_status(deployment.get("/v2/up.test/cold/manifests/v1"))
    assert (tag["fwd"], tag["stored"]) == ("uri-miss", True)
    deployment.fake_registry.add_image("cold", "v1", [b"another layer"])
    moved = parse_cache_status(deployment.get("/v2/up.test/cold/manifests/v1"))
    assert (moved["fwd"], moved["stored"]) == ("stale", True)


def test_errors_are_not_to_be_kept(deployment: Deployment) -> None:
    """An error says `no-store`."""
    for path in ("/v2/up.test/app/manifests/missing", "/v2/up.test/Bad/manifests/x", "/v2/_catalog"):
        assert deployment.get(path).header("Cache-Control") == "no-store"


def test_content_fetched_with_credentials_is_private(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """What only a login can see is not for shared caches on the way."""
    image = fake_registry.add_image("app", "v1", [BLOB])
    entry = {
        "prefix": "up.test",
        "registry": fake_registry.url,
        "auth": {"type": "basic", "username": "u", "password": "p"},
    }
    deployment = make_deployment(upstreams=[entry])
    for what in ("digest", "blob"):
        control = deployment.get(_paths(image)[what]).header("Cache-Control") or ""
        assert "private" in control
        assert "public" not in control


def test_nothing_of_the_upstreams_headers_is_passed_on(deployment: Deployment) -> None:
    """Cookies, rate limits, server names and challenges stay where they came from."""
    image = deployment.fake_registry.add_image("chatty", "v1", [b"a chatty layer"])

    def chatter(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        for name in ("Set-Cookie", "RateLimit-Remaining", "Server", "Location", "Vary", "X-Canary", "Link"):
            response = response.with_header(name, "canary-value")
        return response

    deployment.fake_registry.on(None, chatter, repo="chatty")
    for _ in range(2):
        for path in ("manifests/v1", f"manifests/{image.digest}", f"blobs/{image.layers[0]}"):
            response = deployment.get(f"/v2/up.test/chatty/{path}")
            assert response.status == 200
            assert "canary-value" not in str(response.headers)
