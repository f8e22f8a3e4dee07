"""Registries that contradict themselves, and firewalls that respond instead of them: cached content is not lost."""

import os
from collections.abc import Callable

import pytest

from tests.support import faults
from tests.support.deployment import Deployment, eventually, parse_cache_status, upstream
from tests.support.fake_auth import FakeTokenService, require_authorization
from tests.support.fake_registry import Change, FakeRegistry, Image, basic
from tests.support.http_client import Response
from tests.support.upstreams import methods

TAG = "/v2/up.test/app/manifests/v1"
Start = Callable[..., Deployment]


def assert_stale(response: Response, image: Image) -> None:
    """The copy, marked as such."""
    assert (response.status, response.body) == (200, image.body)
    assert (response.header("Warning") or "").startswith('299 - "')
    assert parse_cache_status(response)["detail"] == "stale-if-error"


def assert_fresh(response: Response, image: Image) -> None:
    """What the upstream has."""
    assert (response.status, response.body) == (200, image.body)
    assert response.header("Docker-Content-Digest") == image.digest
    assert response.header("Warning") is None


# A tag that points to a manifest which is not there


@pytest.mark.parametrize("workers", [1, 3])
def test_a_tag_that_moved_to_a_missing_manifest_is_stale(
    make_deployment: Start, fake_registry: FakeRegistry, workers: int
) -> None:
    """Replicas that are behind: the copy is served until the manifest is there; the pointer is not moved before."""
    old = fake_registry.add_image("app", "v1")
    deployment = make_deployment(workers=workers)
    assert_fresh(deployment.get(TAG), old)
    new = fake_registry.add_image("app", "v1", [b"new"])
    rule = fake_registry.on("manifest", faults.error_response(404, "MANIFEST_UNKNOWN"), reference=new.digest)
    for _ in range(3):
        assert_stale(deployment.get(TAG), old)
    fake_registry.remove_rules(rule)
    assert_fresh(deployment.get(TAG), new)


def test_an_uncached_tag_of_a_missing_manifest_is_fetched_by_tag(
    make_deployment: Start, fake_registry: FakeRegistry
) -> None:
    """As clients do that ask for the tag; it is cached then."""
    image = fake_registry.add_image("app", "v1")
    rule = fake_registry.on("manifest", faults.error_response(404, "MANIFEST_UNKNOWN"), reference=image.digest)
    deployment = make_deployment()
    assert_fresh(deployment.get(TAG), image)
    assert methods(fake_registry.received("manifest")) == ["HEAD", "GET", "GET"]
    fake_registry.remove_rules(rule)
    fake_registry.clear_exchanges()
    assert_fresh(deployment.get(TAG), image)
    assert deployment.get(f"/v2/up.test/app/manifests/{image.digest}").body == image.body
    assert methods(fake_registry.received("manifest")) == ["HEAD"]


def test_an_uncached_tag_whose_manifest_cannot_be_had_is_502(
    make_deployment: Start, fake_registry: FakeRegistry
) -> None:
    """Neither by digest nor by tag: not "not found", the tag exists."""
    fake_registry.add_image("app", "v1")
    fake_registry.on("manifest", faults.error_response(404, "MANIFEST_UNKNOWN"), method="GET")
    response = make_deployment().get(TAG)
    assert (response.status, response.error) == (502, "UNKNOWN")
    assert "app:v1" in response.body.decode()


# HEAD and GET that disagree


def test_a_registry_whose_head_is_404_can_be_pulled_from(make_deployment: Start, fake_registry: FakeRegistry) -> None:
    """The first time, later, after a restart, and when the tag moves."""
    image = fake_registry.add_image("app", "v1")
    fake_registry.on("manifest", faults.error_response(404, "MANIFEST_UNKNOWN"), method="HEAD")
    deployment = make_deployment()
    for _ in range(3):
        assert_fresh(deployment.get(TAG), image)
    deployment.dockyard.stop()
    deployment.dockyard.start()
    assert_fresh(deployment.get(TAG), image)
    moved = fake_registry.add_image("app", "v1", [b"moved"])
    assert_fresh(deployment.get(TAG), moved)
    fake_registry.remove("app", "v1")
    response = deployment.get(TAG)
    assert (response.status, response.error) == (404, "MANIFEST_UNKNOWN")


def test_many_requests_for_a_missing_tag_cost_little(make_deployment: Start, fake_registry: FakeRegistry) -> None:
    """One GET, then HEADs only."""
    deployment = make_deployment()
    for _ in range(5):
        assert deployment.get(TAG).status == 404
    assert methods(fake_registry.received("manifest")) == ["HEAD", "GET", "HEAD", "HEAD", "HEAD", "HEAD"]


# Pages of firewalls


def page(status: int) -> Change:
    """A page of a firewall."""
    return faults.replaced(status, faults.HTML, ("Content-Type", "text/html"))


@pytest.mark.parametrize("status", [200, 401, 403, 404, 410, 451])
def test_a_page_of_a_firewall_is_an_outage(make_deployment: Start, fake_registry: FakeRegistry, status: int) -> None:
    """A cached tag and list is stale; what is not cached is 502, never 404, and says why."""
    image = fake_registry.add_image("app", "v1")
    fake_registry.on("other", faults.replaced(200, b'{"tags":["v1"]}', ("Content-Type", "application/json")))
    deployment = make_deployment()
    assert_fresh(deployment.get(TAG), image)
    tags = deployment.get("/v2/up.test/app/tags/list")
    assert tags.json["tags"] == ["v1"]
    fake_registry.on(None, page(status))
    for _ in range(2):
        assert_stale(deployment.get(TAG), image)
    stale = deployment.get("/v2/up.test/app/tags/list")
    assert (stale.status, stale.body) == (200, tags.body)
    assert stale.header("Warning")
    for path in ("manifests/v2", f"manifests/sha256:{'a' * 64}", f"blobs/{image.layers[0]}", "other/tags/list"):
        response = deployment.get(f"/v2/up.test/app/{path}")
        assert (response.status, response.error) == (502, "UNKNOWN"), path
        deployment.assert_no_leak(response)
    assert deployment.head(f"/v2/up.test/app/blobs/{image.layers[0]}").status == 502
    fake_registry.remove_rules()
    assert_fresh(deployment.get(TAG), image)


@pytest.mark.parametrize("status", [401, 403, 404, 451])
def test_a_page_of_a_firewall_instead_of_the_token_service_is_an_outage(
    make_deployment: Start, fake_registry: FakeRegistry, status: int
) -> None:
    """Docker Hub's token service has another address than its registry, and is blocked as well."""
    service = FakeTokenService(fake_registry)
    image = fake_registry.add_image("app", "v1")
    deployment = make_deployment()
    assert_fresh(deployment.get(TAG), image)
    service.revoke_all()
    rule = fake_registry.on("token", page(status))
    assert_stale(deployment.get(TAG), image)
    assert deployment.get("/v2/up.test/app/manifests/v2").status in (502, 503)
    fake_registry.remove_rules(rule)
    eventually(lambda: deployment.get(TAG).header("Warning") is None, "fresh again")


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("is_page", [True, False])
def test_with_credentials_nothing_is_served_after_a_refusal(
    make_deployment: Start,
    fake_registry: FakeRegistry,
    status: int,
    is_page: bool,  # noqa: FBT001
) -> None:
    """Also when it is a web page: the login may not be allowed to pull the image any more."""
    login = {"type": "basic", "username": "ann", "password": "s3cret-pass"}
    require_authorization(fake_registry, basic("ann", "s3cret-pass"))
    image = fake_registry.add_image("app", "v1")
    deployment = make_deployment(upstreams=[upstream("up.test", fake_registry.url, auth=login)])
    assert_fresh(deployment.get(TAG), image)
    fake_registry.on("manifest", page(status) if is_page else faults.error_response(status, "DENIED"))
    response = deployment.get(TAG)
    assert (response.status, response.error) == (403, "DENIED")


# Blobs that are labelled as web pages


@pytest.mark.parametrize("size", [300, 3 * 1024 * 1024])
def test_a_blob_that_is_sent_as_a_web_page_is_served(
    make_deployment: Start, fake_registry: FakeRegistry, size: int
) -> None:
    """Its digest tells that it is the blob."""
    content = os.urandom(size)
    digest = fake_registry.add_blob(content)
    fake_registry.on("blob", faults.header("Content-Type", "text/html"))
    deployment = make_deployment()
    path = f"/v2/up.test/app/blobs/{digest}"
    head = deployment.head(path)
    assert (head.status, head.header("Content-Length")) == (200, str(size))
    for _ in range(2):
        response = deployment.get(path)
        assert (response.status, response.body, response.is_complete) == (200, content, True)
    assert fake_registry.count("blob", "GET") == 2  # one of them for the first byte


@pytest.mark.parametrize("size", [300, 3 * 1024 * 1024])
def test_a_login_form_instead_of_a_blob_is_502(make_deployment: Start, fake_registry: FakeRegistry, size: int) -> None:
    """Whatever its size: no byte of it is sent, and nothing is stored."""
    digest = fake_registry.add_blob(os.urandom(size))
    fake_registry.on("blob", faults.replaced(200, faults.HTML.ljust(size), ("Content-Type", "text/html")))
    deployment = make_deployment()
    response = deployment.get(f"/v2/up.test/app/blobs/{digest}")
    assert (response.status, response.error) == (502, "UNKNOWN")
    assert deployment.stored_files(digest) == []


# Sizes that cannot be


def test_a_head_of_a_blob_never_has_a_size_of_zero(make_deployment: Start, fake_registry: FakeRegistry) -> None:
    """A front end that says 0 to every HEAD; the empty blob is empty."""
    digest, empty = fake_registry.add_blob(b"x" * 341), fake_registry.add_blob(b"")
    fake_registry.on("blob", faults.replaced(200, b""), method="HEAD")
    deployment = make_deployment()
    assert deployment.head(f"/v2/up.test/app/blobs/{digest}").header("Content-Length") == "341"
    assert deployment.head(f"/v2/up.test/app/blobs/{empty}").header("Content-Length") == "0"
