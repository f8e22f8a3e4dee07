"""Cached content is not lost to trouble with tokens, or to an upstream that contradicts itself."""

import json
from collections.abc import Callable

import pytest

from tests.cases.registries import ScopedTokens, bearer, has_scope, pull_scope, scopes, token_for
from tests.support import faults
from tests.support.deployment import Deployment, upstream
from tests.support.fake_registry import OCI_MANIFEST, FakeRegistry, Image, basic
from tests.support.faults import challenged
from tests.support.http_client import Response
from tests.support.raw_http import Request, ScriptedResponse

TAG = "/v2/up.test/org/app/manifests/v1"
LAYER = b"a layer of the image"


@pytest.fixture
def image(fake_registry: FakeRegistry) -> Image:
    """An image with one layer."""
    return fake_registry.add_image("org/app", "v1", [LAYER])


def assert_fresh(response: Response, image: Image) -> None:
    """The response has the image, not as a stale copy."""
    assert (response.status, response.header("Warning")) == (200, None), response
    assert response.body == image.body


class OneGoodToken:
    """A registry that accepts one token, which can be replaced."""

    def __init__(self) -> None:
        self.good = "T1"

    def accepts(self, _: object, authorization: str) -> bool:
        return authorization == f"Bearer {self.good}"


def test_a_refused_token_is_dropped_when_its_refusal_names_another_service(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, image: Image
) -> None:
    """The other service gives nothing to anonymous clients: the registry is asked once more without a token."""
    token = OneGoodToken()

    def realm(authorization: str | None) -> str:
        return f"{fake_registry.url}/token/{'authn' if authorization else 'proxy_auth'}"

    ScopedTokens(
        fake_registry,
        grant=lambda request: 401 if request.path.endswith("/authn") else token.good,
        accepts=token.accepts,
        challenge=lambda request: bearer(realm(request.header("Authorization")), pull_scope(request.repo)),
    )
    deployment = make_deployment()
    assert_fresh(deployment.get(TAG), image)
    token.good = "T2"
    for _ in range(3):
        assert_fresh(deployment.get(TAG), image)
    assert deployment.get(f"/v2/up.test/org/app/blobs/{image.layers[0]}").body == LAYER


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_token_that_is_good_no_more_is_dropped(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, image: Image, status: int
) -> None:
    """Some registries answer 400 or 403 without a challenge to it, not 401."""
    token = OneGoodToken()
    ScopedTokens(
        fake_registry,
        grant=lambda _: token.good,
        accepts=token.accepts,
        challenge=lambda _: bearer(f"{fake_registry.url}/token", "aws"),
        refusal=status,
    )
    deployment = make_deployment()
    assert_fresh(deployment.get(TAG), image)
    token.good = "T2"
    assert_fresh(deployment.get(TAG), image)
    assert deployment.get(f"/v2/up.test/org/app/blobs/{image.layers[0]}").body == LAYER
    token.good = "T3"
    assert deployment.get(f"/v2/up.test/org/app/blobs/{image.config}").status == 200


@pytest.mark.parametrize("scope", ["repository:test/cp5:pull", "repository:test/cp5:pull,push"])
def test_the_scope_of_the_challenge_is_asked_for(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, scope: str
) -> None:
    """Also when it names another repository: registries may leave out the first part of the name."""
    image = fake_registry.add_image("docker-local/test/cp5", "v1")
    tokens = ScopedTokens(
        fake_registry,
        grant=token_for,
        accepts=lambda _, authorization: has_scope(authorization, scope.replace(",push", "")),
        challenge=lambda _: bearer(f"{fake_registry.url}/token", scope),
    )
    response = make_deployment().get("/v2/up.test/docker-local/test/cp5/manifests/v1")
    assert_fresh(response, image)
    assert any("push" not in " ".join(scopes(each.request)) for each in tokens.requests())


def test_a_placeholder_scope_does_no_harm(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, image: Image
) -> None:
    """A scope that the token service refuses: the own scope alone is asked for."""
    ScopedTokens(
        fake_registry,
        grant=lambda request: 403 if "repository:user/image:pull" in scopes(request) else token_for(request),
        accepts=lambda request, authorization: has_scope(authorization, pull_scope(request.repo)),
        challenge=lambda _: bearer(f"{fake_registry.url}/token", "repository:user/image:pull"),
    )
    assert_fresh(make_deployment().get(TAG), image)


def move_to_missing(fake_registry: FakeRegistry) -> Image:
    """Let the tag move to an image whose digest is 404 by GET: the replicas of the registry lag."""
    new = fake_registry.add_image("org/app", "v1", [b"the next layer"])
    fake_registry.on("manifest", faults.error_response(404, "MANIFEST_UNKNOWN"), reference=new.digest)
    return new


def test_a_tag_that_moved_to_a_digest_that_is_not_there_is_stale(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, image: Image
) -> None:
    """The upstream contradicts itself: the copy is served (or the new image by tag), never 404."""
    deployment = make_deployment()
    assert_fresh(deployment.get(TAG), image)
    new = move_to_missing(fake_registry)
    response = deployment.get(TAG)
    assert response.status == 200
    assert response.body == new.body or (response.body == image.body and response.header("Warning") is not None)


def test_a_cold_tag_whose_digest_is_not_there_is_fetched_by_tag(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """Clients that ask by tag get it from the registry, so they get it here."""
    new = move_to_missing(fake_registry)
    response = make_deployment().get(TAG)
    assert (response.status, response.body) == (200, new.body)


def test_a_cold_tag_that_is_nowhere_by_get_is_a_bad_upstream(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, image: Image
) -> None:
    """HEAD says that it exists: no 404, which clients would believe."""
    fake_registry.on("manifest", faults.error_response(404, "MANIFEST_UNKNOWN"), method="GET")
    assert make_deployment().get(TAG).status == 502


def test_a_manifest_that_only_get_finds_is_served(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, image: Image
) -> None:
    """Before the first 404 of a tag that is not cached there is one GET."""
    fake_registry.on("manifest", faults.error_response(404, "MANIFEST_UNKNOWN"), method="HEAD")
    deployment = make_deployment()
    response = deployment.get(TAG)
    assert (response.status, response.body) == (200, image.body)
    assert deployment.get("/v2/up.test/org/app/manifests/absent").status == 404
    assert fake_registry.count("manifest", "GET", reference="absent") == 1


@pytest.mark.parametrize("status", [401, 403, 404, 451])
def test_a_page_of_a_firewall_is_no_answer_of_the_registry(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, image: Image, status: int
) -> None:
    """What was pulled without a login stays pullable, stale; nothing that is not cached becomes 404."""
    deployment = make_deployment()
    assert_fresh(deployment.get(TAG), image)
    assert deployment.get(f"/v2/up.test/org/app/blobs/{image.layers[0]}").body == LAYER
    fake_registry.on(None, faults.replaced(status, faults.HTML, ("Content-Type", "text/html; charset=utf-8")))
    response = deployment.get(TAG)
    assert (response.status, response.body == image.body) == (200, True)
    assert response.header("Warning") is not None
    assert deployment.get(f"/v2/up.test/org/app/blobs/{image.layers[0]}").body == LAYER


def test_a_redirect_to_a_node_that_wants_the_login_is_no_outage(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, image: Image
) -> None:
    """The login is not sent to a host that is not trusted, and the response has no Retry-After."""
    node = fake_registry.listen("node", "127.0.0.2")
    login = basic("canary", "s3cret")

    def guard(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        if request.header("Authorization") == login:
            return response
        return challenged('Basic realm="origin"')(request, response)

    for kind in ("manifest", "blob", "ping"):
        fake_registry.on(kind, guard)
    target = faults.redirected(lambda request: f"{node.url}{request.target}")
    fake_registry.on("blob", target, listener="registry")
    auth = {"type": "basic", "username": "canary", "password": "s3cret"}
    deployment = make_deployment(upstreams=[upstream("up.test", fake_registry.url, auth=auth)])
    response = deployment.get(f"/v2/up.test/org/app/blobs/{image.layers[0]}")
    assert response.status in {403, 404, 502}
    assert response.header("Retry-After") is None
    assert fake_registry.count("blob", listener="node") >= 1
    assert all(each.request.header("Authorization") is None for each in fake_registry.received(listener="node"))
    assert_fresh(deployment.get(TAG), image)


def test_a_redirect_to_another_registry_gets_the_scope_of_its_own_name(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """Its challenge has a placeholder: the path of the redirect names the repository."""
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {}, "layers": []}).encode()
    fake_registry.add_manifest("org/app", "v1", body, OCI_MANIFEST)
    with FakeRegistry() as other:
        layer = other.add_blob(LAYER)
        fake_registry.add_blob(LAYER)
        tokens = ScopedTokens(
            other,
            grant=token_for,
            accepts=lambda _, authorization: has_scope(authorization, pull_scope("real/name")),
            challenge=lambda _: bearer(f"{other.url}/token", "repository:user/image:pull"),
        )
        fake_registry.on(
            "blob", faults.redirected(lambda request: f"{other.url}/v2/real/name/blobs/{request.reference}")
        )
        deployment = make_deployment(
            upstreams=[upstream("up.test", fake_registry.url, trusted_hosts=[other.authority])]
        )
        response = deployment.get(f"/v2/up.test/org/app/blobs/{layer}")
        assert (response.status, response.body) == (200, LAYER)
        assert any(pull_scope("real/name") in scopes(each.request) for each in tokens.requests())
