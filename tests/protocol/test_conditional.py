"""Conditional requests, and the headers that caches and clients read."""

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
    """An image whose manifest and blobs are all cached."""
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
def test_a_matching_validator_is_304(
    deployment: Deployment, image: Image, what: str, spelling: str, method: str
) -> None:
    """A matching `If-None-Match`, however it is written, is 304 with the validator and without a body."""
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
def test_another_validator_gets_the_whole_response(
    deployment: Deployment, image: Image, what: str, validator: str
) -> None:
    """A validator that does not match gets the whole response."""
    response = deployment.get(_paths(image)[what], If_None_Match=validator)
    assert response.status == 200
    assert response.body == (BLOB if what == "blob" else image.body)


def test_if_none_match_is_evaluated_before_range(deployment: Deployment, image: Image) -> None:
    """A match is 304 whatever range is requested; without a match the range applies."""
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
    """The range applies only when the client's validator matches; otherwise the response is the whole body."""
    if_range = validator.format(digest=image.layers[0])
    response = deployment.get(_paths(image)["blob"], Range="bytes=100-199", If_Range=if_range)
    assert (response.status, response.body) == ((206, BLOB[100:200]) if status == 206 else (200, BLOB))


def test_an_open_range_of_a_manifest(deployment: Deployment, image: Image) -> None:
    """The parallel download of containerd sends `bytes=0-` for manifests too: 206 or 200 with the whole manifest."""
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
def test_headers_of_content_by_digest(deployment: Deployment, image: Image, what: str, method: str) -> None:
    """Content by digest may be cached by everyone for ever; Cache-Status says that it was a hit."""
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
    """A tag must be revalidated each time; Cache-Status says that it was just compared with the upstream's."""
    response = deployment.request(method, _paths(image)["tag"])
    _assert_common(response, image.digest, len(image.body))
    assert (response.header("Cache-Control") or "").startswith("no-cache")
    status = parse_cache_status(response)
    assert (status[""], status["fwd"]) == ("Dockyard", "stale")
    assert "hit" not in status
    assert int(response.header("Age") or 0) <= 1


def test_cache_status_of_cold_content(deployment: Deployment) -> None:
    """A miss was forwarded and stored; so was a tag that moved."""
    image = deployment.fake_registry.add_image("cold", "v1", [b"a cold layer"])
    blob = parse_cache_status(deployment.get(f"/v2/up.test/cold/blobs/{image.layers[0]}"))
    assert (blob["fwd"], blob.get("hit")) == ("uri-miss", None)
    tag = parse_cache_status(deployment.get("/v2/up.test/cold/manifests/v1"))
    assert (tag["fwd"], tag["stored"]) == ("uri-miss", True)
    deployment.fake_registry.add_image("cold", "v1", [b"another layer"])
    moved = parse_cache_status(deployment.get("/v2/up.test/cold/manifests/v1"))
    assert (moved["fwd"], moved["stored"]) == ("stale", True)


def test_errors_are_not_cacheable(deployment: Deployment) -> None:
    """An error response has `no-store`."""
    for path in ("/v2/up.test/app/manifests/missing", "/v2/up.test/Bad/manifests/x", "/v2/_catalog"):
        assert deployment.get(path).header("Cache-Control") == "no-store"


def test_content_fetched_with_credentials_is_private(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """Content that needs a login must not be stored by shared caches on the way."""
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


def test_upstream_headers_are_not_passed_on(deployment: Deployment) -> None:
    """Cookies, rate limits, server names and challenges are not passed on."""
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
