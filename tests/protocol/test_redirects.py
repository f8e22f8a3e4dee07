"""Blobs that the registry redirects to another host: credentials, resumes, expired URLs, forbidden targets."""

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
import trustme

from tests.support import faults
from tests.support.busy_machine import is_within
from tests.support.certificates import server_context
from tests.support.deployment import Deployment, open_deployment, upstream
from tests.support.fake_auth import FakeTokenService
from tests.support.fake_registry import Change, FakeRegistry
from tests.support.raw_http import Request, ScriptedResponse

BLOB = Random(35).randbytes(2_000_000)


def _to_cdn(fake_registry: FakeRegistry, digest: str) -> None:
    """Redirect every request for the blob to a presigned URL of its own at the CDN, which is on another host."""
    fake_registry.listen("cdn", "127.0.0.2")
    fake_registry.on("blob", faults.redirected(lambda request: fake_registry.presign(digest, listener="cdn")))


def test_credentials_stay_with_the_registry(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """The other host gets neither the token nor a cookie; it is asked for identity encoding."""
    FakeTokenService(fake_registry)
    digest = fake_registry.add_blob(BLOB)
    _to_cdn(fake_registry, digest)
    fake_registry.on("manifest", faults.header("Set-Cookie", "session=canary"))
    deployment = make_deployment()
    deployment.get("/v2/up.test/app/manifests/v1")
    response = deployment.get(
        f"/v2/up.test/app/blobs/{digest}", Authorization="Bearer clients-own", Cookie="clients=own"
    )
    assert response.body == BLOB
    (download,) = fake_registry.received("cdn")
    assert download.request.header("Authorization") is None
    assert download.request.header("Cookie") is None
    assert download.request.header("Accept-Encoding") == "identity"
    assert not any("clients" in str(exchange.request) for exchange in fake_registry.received())
    assert "Signature" not in deployment.read_log()


def test_a_resume_goes_through_the_registry_with_its_range(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """A download that broke at the CDN is resumed with `Range`, and still without credentials."""
    FakeTokenService(fake_registry)
    digest = fake_registry.add_blob(BLOB)
    _to_cdn(fake_registry, digest)
    fake_registry.on("cdn", faults.cut(0.5, "rst"), times=1)
    deployment = make_deployment()
    assert deployment.get(f"/v2/up.test/app/blobs/{digest}").body == BLOB
    first, second = fake_registry.received("cdn")
    assert first.request.header("Range") is None
    assert (second.request.header("Range") or "").startswith("bytes=")
    assert second.request.header("Authorization") is None
    assert first.request.target != second.request.target


def test_an_https_cdn_with_a_private_certificate(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, tmp_path: Path
) -> None:
    """A redirect from http to https on another host uses the `ca_file` of the upstream."""
    authority = trustme.CA()
    server = server_context(authority, "127.0.0.2")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    digest = fake_registry.add_blob(BLOB)
    fake_registry.listen("cdn", "127.0.0.2", tls=server)
    fake_registry.on("blob", faults.redirected(lambda request: fake_registry.presign(digest, listener="cdn")))
    deployment = make_deployment(upstreams=[upstream("up.test", fake_registry.url, ca_file=str(tmp_path / "ca.pem"))])
    assert deployment.get(f"/v2/up.test/app/blobs/{digest}").body == BLOB


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_relative_locations(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, status: int
) -> None:
    """A location that is a path only is resolved against the host that sent it."""
    digest = fake_registry.add_blob(BLOB)
    fake_registry.on(
        "blob", faults.redirected(lambda request: fake_registry.presign(digest).removeprefix(fake_registry.url), status)
    )
    assert make_deployment().get(f"/v2/up.test/app/blobs/{digest}").body == BLOB


def _chain(fake_registry: FakeRegistry, digest: str, hops: int) -> Callable[[Request], str]:
    """The n-th request is redirected to the next URL, the last one to the blob."""
    left = iter(range(hops - 1))

    def location(request: Request) -> str:
        return fake_registry.presign(digest) if next(left, None) is None else f"/v2/app/blobs/{digest}"

    return location


def test_a_short_chain_is_followed(make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry) -> None:
    """Three redirects in a row are followed."""
    digest = fake_registry.add_blob(BLOB)
    fake_registry.on("blob", faults.redirected(_chain(fake_registry, digest, 3)))
    assert make_deployment().get(f"/v2/up.test/app/blobs/{digest}").body == BLOB


LONG_WAYS: dict[str, Callable[[str], Change]] = {
    "loop": lambda digest: faults.redirected(f"/v2/app/blobs/{digest}"),
    "without Location": lambda digest: faults.replaced(307),
    "file": lambda digest: faults.redirected("file:///etc/passwd"),
    "gopher": lambda digest: faults.redirected("gopher://127.0.0.1/"),
    "userinfo": lambda digest: faults.redirected("http://user:secret@127.0.0.1:1/x"),
    "connection refused": lambda digest: faults.redirected("http://127.0.0.1:1/x"),
    "64 KiB": lambda digest: faults.redirected("http://127.0.0.1:1/" + "x" * 65536),
    "no URL": lambda digest: faults.redirected("http://[::1/"),
}


@pytest.mark.parametrize("way", LONG_WAYS)
def test_invalid_redirects(make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, way: str) -> None:
    """A loop, a scheme other than HTTP, an invalid location: an error, soon, after few requests."""
    digest = fake_registry.add_blob(BLOB)
    fake_registry.on("blob", LONG_WAYS[way](digest))
    deployment = make_deployment()
    response = deployment.get(f"/v2/up.test/app/blobs/{digest}")
    assert response.status in ((502, 503) if way == "connection refused" else (502,))
    assert is_within(response.took_s, 9)
    assert fake_registry.count("blob") <= 44  # four attempts of at most eleven requests
    deployment.assert_no_leak(response)


def test_eleven_hops_are_too_many(make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry) -> None:
    """A chain that does not end after ten redirects is not followed further."""
    digest = fake_registry.add_blob(BLOB)
    fake_registry.on("blob", faults.redirected(_chain(fake_registry, digest, 11)))
    assert make_deployment().get(f"/v2/up.test/app/blobs/{digest}").status == 502
    assert fake_registry.count("cdn") == 0


FORBIDDEN = [
    "http://127.0.0.1:{port}/x",
    "http://localhost:{port}/x",
    "http://127.1:{port}/x",
    "http://0.0.0.0:{port}/x",
    "http://2130706433:{port}/x",
    "http://0x7f000001:{port}/x",
    "http://[::ffff:127.0.0.1]:{port}/x",
    "http://[::1]:{port}/x",
    "http://169.254.169.254/latest/meta-data",
    "http://10.0.0.1/x",
    "http://[fe80::1]/x",
    "http://[2002:7f00:1::]/x",
    "http://[64:ff9b::7f00:1]/x",
]


@pytest.fixture(scope="module")
def public_deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment whose registry has a public name and is reached through a proxy."""
    with FakeRegistry() as fake_registry:
        fake_registry.listen("forbidden")
        entry = upstream("up.test", "http://registry.example.com", proxy=fake_registry.listen("proxy").url)
        with open_deployment(fake_registry, tmp_path_factory.mktemp("public"), upstreams=[entry]) as deployment:
            yield deployment


@pytest.mark.parametrize("place", FORBIDDEN)
def test_a_public_registry_may_not_redirect_to_a_private_address(public_deployment: Deployment, place: str) -> None:
    """A public registry's redirect into a private network is rejected before any connection is made."""
    fake_registry = public_deployment.fake_registry
    forbidden = fake_registry.listeners["forbidden"]
    digest = fake_registry.add_blob(place.encode())
    fake_registry.on("blob", faults.redirected(place.format(port=forbidden.port)), reference=digest)
    response = public_deployment.get(f"/v2/up.test/app/blobs/{digest}")
    assert response.status == 502
    assert is_within(response.took_s, 4)
    assert forbidden.connections == 0
    assert all(
        e.request.target.startswith("http://registry.example.com/") for e in fake_registry.received(listener="proxy")
    )
    assert fake_registry.count(listener="proxy", reference=digest) > 0


def test_a_trusted_private_address_is_followed(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """`trusted_hosts` allows a private address."""
    cdn = fake_registry.listen("cdn", "127.0.0.2")
    proxy = fake_registry.listen("proxy")
    digest = fake_registry.add_blob(BLOB)
    fake_registry.on("blob", faults.redirected(lambda request: fake_registry.presign(digest, listener="cdn")))
    deployment = make_deployment(
        upstreams=[upstream("up.test", "http://registry.example.com", proxy=proxy.url, trusted_hosts=[cdn.authority])]
    )
    assert deployment.get(f"/v2/up.test/app/blobs/{digest}").body == BLOB


def test_head_of_a_blob_whose_url_is_signed_for_get(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """The CDN rejects HEAD: the size comes from a GET of one byte by Range."""
    digest = fake_registry.add_blob(BLOB)
    _to_cdn(fake_registry, digest)
    deployment = make_deployment()
    response = deployment.head(f"/v2/up.test/app/blobs/{digest}")
    assert (response.status, response.header("Content-Length")) == (200, str(len(BLOB)))
    assert fake_registry.sent_bytes("cdn") <= 200  # one byte, and the body of the rejected request


def test_a_presigned_url_that_fails_at_once(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """A presigned URL that fails at once: a new one is requested from the registry."""
    digest = fake_registry.add_blob(BLOB)
    _to_cdn(fake_registry, digest)
    fake_registry.on("cdn", faults.replaced(403, b"<Error/>", ("Content-Type", "application/xml")), times=1)
    assert make_deployment().get(f"/v2/up.test/app/blobs/{digest}").body == BLOB
    assert (fake_registry.count("blob", "GET"), fake_registry.count("cdn", "GET")) == (2, 2)


def test_a_presigned_url_that_expires_during_the_download(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """The body breaks and the old URL answers 403 from then on: it is not used again, unseen by the client."""
    digest = fake_registry.add_blob(BLOB)
    _to_cdn(fake_registry, digest)

    def expire(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        fake_registry.expire_presigned()
        return faults.cut(0.5)(request, response)

    fake_registry.on("cdn", expire, times=1)
    response = make_deployment().get(f"/v2/up.test/app/blobs/{digest}")
    assert (response.ended, response.body == BLOB) == ("length", True)
    assert (fake_registry.count("blob", "GET"), fake_registry.count("cdn", "GET")) == (2, 2)
    assert len({exchange.request.target for exchange in fake_registry.received("cdn")}) == 2
    assert [exchange.status for exchange in fake_registry.received("cdn")] == [200, 206]


def test_tags_stay_fresh_while_the_cdn_is_down(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """Only the CDN is down, not the registry: blobs are 502 or 503, tags are still checked."""
    image = fake_registry.add_image("app", "v1", [BLOB])
    _to_cdn(fake_registry, image.layers[0])
    fake_registry.listeners["cdn"].close()
    deployment = make_deployment()
    assert deployment.get(f"/v2/up.test/app/blobs/{image.layers[0]}").status in (502, 503)
    for _ in range(2):
        response = deployment.get("/v2/up.test/app/manifests/v1")
        assert (response.status, response.header("Warning")) == (200, None)
