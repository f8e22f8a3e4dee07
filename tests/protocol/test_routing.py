"""Which upstream a request is routed to, and which endpoints there are."""

import time
from collections.abc import Callable

import pytest

from tests.support import faults
from tests.support.busy_machine import is_within
from tests.support.deployment import Deployment, upstream
from tests.support.fake_registry import FakeRegistry, basic
from tests.support.http_client import send_raw

SHAPES = {
    "U1": "/v2/docker.io/{name}/{rest}",
    "U2": "/v2/docker.io/{name}/{rest}?ns=docker.io",
    "U3": "/docker.io/v2/{name}/{rest}?ns=docker.io",
    "U4": "/v2/{name}/{rest}?ns=docker.io",
    "U5": "/v2/{name}/{rest}",
}


def test_five_shapes_lead_to_one_cached_image(deployment: Deployment) -> None:
    """All URL shapes give the same bytes, and together cost one upstream request for each object."""
    image = deployment.fake_registry.add_image("library/shapes", "v1", [b"a layer for five shapes"])
    for shape in SHAPES.values():
        by_tag = deployment.get(shape.format(name="library/shapes", rest="manifests/v1"))
        by_digest = deployment.get(shape.format(name="library/shapes", rest=f"manifests/{image.digest}"))
        blob = deployment.get(shape.format(name="library/shapes", rest=f"blobs/{image.layers[0]}"))
        assert (by_tag.body, by_digest.body, blob.body) == (image.body, image.body, b"a layer for five shapes"), shape
        assert by_tag.header("Docker-Content-Digest") == image.digest
        for response in (by_tag, by_digest, blob):
            assert response.header("OCI-Namespace") == ("docker.io" if "?ns=" in shape else None)
    assert deployment.fake_registry.count("manifest", "GET", repo="library/shapes") == 1
    assert deployment.fake_registry.count("blob", "GET", reference=image.layers[0]) == 1


@pytest.mark.parametrize("host", ["index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"])
def test_the_other_names_of_docker_hub_lead_to_the_same_image(deployment: Deployment, host: str) -> None:
    """In the name, in the path and as `ns`, also with a port: one request upstream for all of them."""
    image = deployment.fake_registry.add_image("library/hub", "v1", [b"a layer under all names"])
    for start, query in (
        (f"/v2/{host}/library/hub", ""),
        (f"/v2/{host}/hub", "?ns=docker.io"),
        (f"/{host}/v2/library/hub", f"?ns={host}"),
        ("/v2/library/hub", f"?ns={host}:443"),
        ("/v2/library/hub", "?ns=docker.io:443"),
    ):
        for reference in ("v1", image.digest):
            assert deployment.get(f"{start}/manifests/{reference}{query}").body == image.body
        assert deployment.get(f"{start}/blobs/{image.layers[0]}{query}").body == b"a layer under all names"
    assert deployment.fake_registry.count("manifest", "GET", repo="library/hub") == 1
    assert deployment.fake_registry.count("blob", "GET", reference=image.layers[0]) == 1
    assert deployment.get(f"/{host}/v2/").status == 200


def test_a_doubled_v2_in_the_path_is_explained(deployment: Deployment) -> None:
    """`/v2/<prefix>/v2/<name>` comes from a wrong mirror setting: 404 with a message that explains it."""
    deployment.fake_registry.add_image("library/sixth", "v1")
    response = deployment.get("/v2/docker.io/v2/library/sixth/manifests/v1?ns=docker.io")
    assert (response.status, response.error) == (404, "NAME_UNKNOWN")
    assert "/v2" in response.json["errors"][0]["message"]


@pytest.mark.parametrize("path", ["/v2/{}", "/v2/docker.io/{}"], ids=["bare", "with the prefix"])
def test_a_prefix_in_the_path_wins_over_ns(deployment: Deployment, path: str) -> None:
    """When prefix and `ns` disagree the prefix decides; `ns` is still echoed."""
    deployment.fake_registry.add_image("library/both", "v1")
    response = deployment.get("/v2/up.test/library/both/manifests/v1?ns=docker.io")
    assert response.status == 200
    assert response.header("OCI-Namespace") == "docker.io"


@pytest.mark.parametrize(
    "namespace", ["evil.test", "169.254.169.254", "127.0.0.1:6379", "up.test:443@evil", "UP.TEST/", ""]
)
def test_an_unknown_namespace_is_rejected(deployment: Deployment, namespace: str) -> None:
    """A host without a configured upstream is unknown: Dockyard is no open proxy."""
    before = len(deployment.fake_registry.exchanges)
    response = deployment.get(f"/v2/library/app/manifests/v1?ns={namespace}")
    if namespace:
        assert (response.status, response.error) == (404, "NAME_UNKNOWN")
        assert len(deployment.fake_registry.exchanges) == before


def test_a_listening_namespace_gets_no_connection(deployment: Deployment) -> None:
    """No connection is made to the host that `ns` names."""
    elsewhere = deployment.fake_registry.listen("elsewhere", "127.0.0.2")
    for namespace in (elsewhere.authority, f"http://{elsewhere.authority}", f"up.test@{elsewhere.authority}"):
        assert deployment.get(f"/v2/library/app/manifests/v1?ns={namespace}").status == 404
    assert elsewhere.connections == 0


def _demand(fake_registry: FakeRegistry, repo: str, username: str, password: str) -> None:
    """Make the fake registry require Basic credentials for one repository."""
    wanted = basic(username, password)
    refusal = faults.challenged('Basic realm="origin"')
    fake_registry.on(None, refusal, repo=repo, when=lambda request: request.header("Authorization") != wanted)


def test_the_longest_prefix_by_component(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """`up.test/org` is no prefix of `up.test/orgx`; each name uses the credentials of its own upstream."""
    _demand(fake_registry, "app", "org-user", "org-secret")
    _demand(fake_registry, "orgx/app", "up-user", "up-secret")
    for repo in ("app", "orgx/app", "org"):
        fake_registry.add_image(repo, "v1")
    deployment = make_deployment(
        upstreams=[
            upstream(
                "up.test", fake_registry.url, auth={"type": "basic", "username": "up-user", "password": "up-secret"}
            ),
            upstream(
                "up.test/org",
                fake_registry.url,
                auth={"type": "basic", "username": "org-user", "password": "org-secret"},
            ),
        ]
    )
    assert deployment.get("/v2/up.test/org/app/manifests/v1").status == 200
    assert deployment.get("/v2/up.test/orgx/app/manifests/v1").status == 200
    assert deployment.get("/v2/up.test/org/manifests/v1").status in (200, 400, 404)
    sent = {(e.request.repo, e.request.header("Authorization")) for e in fake_registry.received() if e.request.repo}
    assert sent <= {
        ("app", None),
        ("app", basic("org-user", "org-secret")),
        ("orgx/app", None),
        ("orgx/app", basic("up-user", "up-secret")),
        ("org", None),
        ("org", basic("up-user", "up-secret")),
    }


def test_a_path_in_the_registry_setting_is_put_before_the_repository(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """`registry: host/org` with a prefix of another name: the prefix is removed, the path is added."""
    fake_registry.add_image("org/app", "v1")
    deployment = make_deployment(upstreams=[upstream("mine.test", f"{fake_registry.url}/org")])
    assert deployment.get("/v2/mine.test/app/manifests/v1").status == 200
    assert {exchange.request.repo for exchange in fake_registry.received("manifest")} == {"org/app"}


@pytest.mark.parametrize("name", ["ghcr.io/org/app", "docker.iox/library/app", "UP.TEST/app"])
def test_a_name_without_a_configured_prefix_is_unknown(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, name: str
) -> None:
    """Without a default upstream a name that begins with no configured prefix is unknown."""
    deployment = make_deployment(upstreams=[upstream("up.test", fake_registry.url)])
    response = deployment.get(f"/v2/{name}/manifests/v1")
    assert response.status in (400, 404)
    assert response.error in ("NAME_UNKNOWN", "NAME_INVALID")
    assert fake_registry.count() == 0


def test_hub_names_of_one_component_get_library(deployment: Deployment) -> None:
    """`docker.io/alpine` and `docker.io/library/alpine` are one image, fetched once."""
    image = deployment.fake_registry.add_image("library/alpine", "v1")
    for path in ("/v2/docker.io/alpine", "/v2/docker.io/library/alpine", "/v2/alpine", "/v2/alpine"):
        assert deployment.get(f"{path}/manifests/{image.digest}").body == image.body
        assert deployment.get(f"{path}/blobs/{image.config}").status == 200
    assert deployment.fake_registry.count("manifest", repo="library/alpine") == 1
    assert deployment.fake_registry.count("blob", "GET", reference=image.config) == 1
    assert deployment.fake_registry.count(repo="alpine") == 0


def test_library_is_added_for_docker_hub_only(deployment: Deployment) -> None:
    """A single component behind another prefix is not changed."""
    deployment.fake_registry.add_image("alone", "v1")
    assert deployment.get("/v2/up.test/alone/manifests/v1").status == 200
    assert deployment.fake_registry.count(repo="library/alone") == 0


@pytest.mark.parametrize("path", ["/v2/", "/v2"])
def test_the_version_check_needs_no_login(deployment: Deployment, path: str) -> None:
    """`/v2/` with and without its slash is 200 and an empty object, without any upstream request."""
    before = len(deployment.fake_registry.exchanges)
    response = deployment.get(path)
    assert (response.status, response.json) == (200, {})
    assert deployment.head(path).status == 200
    assert len(deployment.fake_registry.exchanges) == before


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/up.test/app/blobs/uploads/"),
        ("PUT", "/v2/up.test/app/manifests/v1"),
        ("DELETE", "/v2/up.test/app/manifests/v1"),
        ("PATCH", "/v2/up.test/app/blobs/uploads/1"),
        ("DELETE", "/v2/up.test/app/blobs/sha256:" + "0" * 64),
        ("OPTIONS", "/v2/up.test/app/manifests/v1"),
        ("TRACE", "/v2/up.test/app/manifests/v1"),
        ("POST", "/v2/"),
    ],
)
def test_writes_are_not_allowed(deployment: Deployment, method: str, path: str) -> None:
    """A read-only cache answers 405 with Allow; an override header changes nothing."""
    before = len(deployment.fake_registry.exchanges)
    response = deployment.request(method, path, X_HTTP_Method_Override="GET")
    assert (response.status, response.error) == (405, "UNSUPPORTED")
    assert {word.strip() for word in (response.header("Allow") or "").split(",")} == {"GET", "HEAD"}
    assert len(deployment.fake_registry.exchanges) == before


def test_an_override_header_does_not_write(deployment: Deployment) -> None:
    """GET with `X-HTTP-Method-Override: DELETE` is GET."""
    assert deployment.get("/v2/", X_HTTP_Method_Override="DELETE").status == 200


@pytest.mark.parametrize("framing", ["Content-Length: 10000000000", "Transfer-Encoding: chunked"])
def test_an_upload_is_rejected_with_its_body_unread(deployment: Deployment, framing: str) -> None:
    """405 comes at once, before a byte of the announced body was sent."""
    request = f"POST /v2/up.test/app/blobs/uploads/ HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n"
    began = time.monotonic()
    response = send_raw(deployment.address, request.encode())
    assert response.startswith(b"HTTP/1.1 405 ")
    assert is_within(time.monotonic() - began, 1)
    assert deployment.get("/v2/").status == 200


def test_there_is_no_catalog(deployment: Deployment) -> None:
    """`_catalog` is not part of a pull-through cache."""
    assert deployment.get("/v2/_catalog").status in (404, 405)


def test_the_version_of_the_program(deployment: Deployment) -> None:
    """`/version` is answered without any upstream request."""
    before = len(deployment.fake_registry.exchanges)
    response = deployment.get("/version")
    assert (response.status, response.header("Content-Type")) == (200, "application/json")
    assert "version" in response.json
    assert len(deployment.fake_registry.exchanges) == before
