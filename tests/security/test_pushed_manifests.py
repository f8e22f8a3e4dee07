"""What real registries accept at a push, and whether it gives access to blobs of other repositories.

Somebody may push to `open/app` and knows the digest of a layer of `secret/app`, which is cached. A registry accepts
some manifests that name it, and does not give it under `open/app`: neither may Dockyard.
"""

import contextlib
import http.client
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.bodies import digest_of
from tests.support.deployment import Deployment, upstream
from tests.support.distribution import DistributionRegistry
from tests.support.fake_registry import DOCKER_LIST, DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from tests.support.http_client import send_request
from tests.support.loopback_server import LoopbackServer
from tests.support.olareg import Olareg
from tests.support.olareg_fixtures import olareg

__all__ = ["olareg"]

SECRET, MINE, CONFIG = b"secret layer of the team", b"my layer", b"{}"
INSIDER = {"X_Forwarded_For": "192.0.2.1"}
RULES: dict[str, Any] = {
    "server": {"trusted_proxies": ["127.0.0.1"]},
    "access": {
        "networks": [{"name": "inside", "addresses": ["192.0.2.1"]}],
        "rules": [{"allow": True, "repositories": ["up.test/open/**"]}, {"allow": True, "who": ["network:inside"]}],
    },
}


def named(body: bytes, media_type: str) -> dict[str, Any]:
    """The descriptor of a blob."""
    return {"mediaType": media_type, "digest": digest_of(body), "size": len(body)}


LAYER = named(SECRET, OCI_LAYER)
IMAGE = {"schemaVersion": 2, "config": named(CONFIG, OCI_CONFIG), "layers": [named(MINE, OCI_LAYER)]}
PUSHED: list[tuple[dict[str, Any], str]] = [
    (IMAGE | {"mediaType": OCI_MANIFEST, "layers": [LAYER]}, OCI_MANIFEST),
    (IMAGE | {"mediaType": OCI_MANIFEST, "blobs": [LAYER]}, OCI_MANIFEST),
    (IMAGE | {"mediaType": OCI_MANIFEST, "subject": LAYER}, OCI_MANIFEST),
    (IMAGE | {"mediaType": OCI_MANIFEST, "layers": [LAYER | {"urls": ["https://example.com/x"]}]}, OCI_MANIFEST),
    ({"schemaVersion": 2, "mediaType": OCI_INDEX, "blobs": [LAYER]}, OCI_INDEX),
    ({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": None, "blobs": [LAYER]}, OCI_INDEX),
    ({"schemaVersion": 2, "mediaType": DOCKER_LIST, "blobs": [LAYER]}, DOCKER_LIST),
    ({"schemaVersion": 2, "blobs": [LAYER]}, OCI_INDEX),
    (IMAGE | {"layers": [LAYER]}, OCI_INDEX),
    (IMAGE | {"layers": [LAYER]}, DOCKER_LIST),
    (IMAGE | {"layers": [LAYER]}, DOCKER_MANIFEST),
    (IMAGE | {"layers": [LAYER]}, "application/vnd.example.image+json"),
]


@pytest.fixture(params=["distribution", "olareg"])
def real_registry(request: pytest.FixtureRequest) -> LoopbackServer:
    """A real registry that has the secret layer in one repository, and the others in another one."""
    chosen = request.getfixturevalue("registry" if request.param == "distribution" else "olareg")
    assert isinstance(chosen, DistributionRegistry | Olareg)
    for repository, body in (("secret/app", SECRET), ("open/app", MINE), ("open/app", CONFIG), ("secret/app", CONFIG)):
        response = push(chosen, "POST", f"/v2/{repository}/blobs/uploads/?digest={digest_of(body)}", body)
        if response.status == 202:  # in two steps
            location = (response.getheader("Location") or "").removeprefix(chosen.url)
            joint = "&" if "?" in location else "?"
            response = push(chosen, "PUT", f"{location}{joint}digest={digest_of(body)}", body)
        assert response.status == 201
    image = json.dumps(IMAGE | {"mediaType": OCI_MANIFEST, "layers": [LAYER]}).encode()
    assert push(chosen, "PUT", "/v2/secret/app/manifests/latest", image, OCI_MANIFEST).status == 201
    return chosen


def push(
    server: LoopbackServer, method: str, path: str, body: bytes, media_type: str = "application/octet-stream"
) -> http.client.HTTPResponse:
    """Send a request of a push; the body of the response has been read."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:
        connection.request(method, path, body, {"Content-Type": media_type})
        response = connection.getresponse()
        response.read()
        return response


@pytest.mark.parametrize("access", [RULES, None], ids=["rules", "upstream"])
def test_a_pushed_manifest_gives_access_to_nothing_that_the_registry_does_not_give(
    real_registry: LoopbackServer, make_deployment: Callable[..., Deployment], access: dict[str, Any] | None
) -> None:
    """Each one that the registry accepts, requested and then stored."""
    settings = {} if access else {"access": "upstream"}
    deployment = make_deployment(upstreams=[upstream("up.test", real_registry.url, **settings)], **(access or {}))
    secret, own = (f"/v2/up.test/{name}/blobs/{LAYER['digest']}" for name in ("secret/app", "open/app"))
    assert deployment.get("/v2/up.test/secret/app/manifests/latest", **INSIDER).status == 200
    assert deployment.get(secret, **INSIDER).body == SECRET
    accepted = 0
    for document, media_type in PUSHED:
        body = json.dumps(document).encode()
        if push(real_registry, "PUT", "/v2/open/app/manifests/evil", body, media_type).status != 201:
            continue
        accepted += 1
        digest = digest_of(body)
        assert send_request(("127.0.0.1", real_registry.port), own.replace("up.test/", ""), {}).status == 404
        assert deployment.get(f"/v2/up.test/open/app/manifests/{digest}").status in (200, 502)
        for _ in range(2):
            assert deployment.get(own).status == 404, body
    assert accepted >= 4, "the registry accepts some of them"
    assert deployment.get(f"/v2/up.test/open/app/blobs/{digest_of(MINE)}").body == MINE
