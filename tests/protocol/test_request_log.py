"""The log line of a failed request: reason, server and error; the client gets the reason only."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.support import faults
from tests.support.bodies import Synthetic
from tests.support.deployment import Deployment, eventually
from tests.support.fake_registry import FakeRegistry
from tests.support.http_client import Response

MISSING = f"sha256:{'0' * 64}"
MIB = 1024 * 1024


@pytest.fixture(params=[1, 3], ids=["one worker", "three workers"])
def logged(request: pytest.FixtureRequest, make_deployment: Callable[..., Deployment]) -> Deployment:
    """A deployment whose log is JSON. With several workers, most requests are made by another one than is asked."""
    return make_deployment(workers=request.param, logger={"encoding": "json"})


def lines(deployment: Deployment, **wanted: object) -> list[Mapping[str, Any]]:
    """The request lines with these fields."""
    found = [json.loads(line) for line in deployment.dockyard.read_log().splitlines() if line.startswith("{")]
    requests = [line for line in found if line["event"] == "request"]
    return [line for line in requests if all(line.get(name) == value for name, value in wanted.items())]


def line_of(deployment: Deployment, **wanted: object) -> Mapping[str, Any]:
    """The only request line with these fields."""
    (line,) = eventually(lambda: lines(deployment, **wanted), f"a line with {wanted}")
    return line


def check(deployment: Deployment, response: Response, line: Mapping[str, Any], error: str) -> None:
    """The line has the message of the response, the registry and the error. The response has no more."""
    deployment.assert_no_leak(response)
    if response.body:
        assert line["reason"] == json.loads(response.body)["errors"][0]["message"]
    assert line["reason"].startswith("up.test ")
    assert line["host"] == deployment.fake_registry.authority
    assert line["error"] == error
    for text in (line["error"], line["host"]):
        assert text not in response.body.decode() + str(response.headers)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "path",
    [
        "manifests/latest",
        f"manifests/{MISSING}",
        f"blobs/{MISSING}",
        "tags/list",
        f"referrers/{MISSING}",
    ],
)
def test_an_error_of_the_registry(logged: Deployment, fake_registry: FakeRegistry, method: str, path: str) -> None:
    """Manifests, blobs, lists; GET and HEAD."""
    fake_registry.on(None, faults.error_response(503))
    response = logged.request(method, f"/v2/up.test/app/{path}")
    assert response.status == 503
    check(logged, response, line_of(logged, method=method, name="up.test/app"), "HTTP 503 Service Unavailable")


def test_a_refusal_without_a_login(logged: Deployment, fake_registry: FakeRegistry) -> None:
    """Docker Hub responds with 401 to what does not exist: the client reads both possibilities."""
    fake_registry.on(None, faults.challenged('Basic realm="x"'))
    response = logged.get("/v2/up.test/app/manifests/latest")
    assert response.status == 404
    line = line_of(logged, reference="latest")
    check(logged, response, line, "HTTP 401 Unauthorized")
    assert line["reason"] == "up.test has no app:latest, or it needs a login: set `auth` for this prefix"
    assert line["credentials"] == "none"


def test_a_stale_response(logged: Deployment, fake_registry: FakeRegistry) -> None:
    """Why the upstream could not be asked."""
    image = fake_registry.add_image("app", "v1")
    assert logged.get("/v2/up.test/app/manifests/v1").body == image.body
    fake_registry.on("manifest", faults.error_response(500))
    response = logged.head("/v2/up.test/app/manifests/v1")
    assert response.status == 200
    check(logged, response, line_of(logged, how="stale"), "HTTP 500 Internal Server Error")


def test_a_remembered_error(logged: Deployment, fake_registry: FakeRegistry) -> None:
    """While the circuit breaker is open, no request is sent; its cause is logged."""
    fake_registry.on("manifest", faults.error_response(429, retry_after="60"))
    assert logged.get("/v2/up.test/app/manifests/v1").status == 429
    asked = fake_registry.count()
    response = logged.get("/v2/up.test/other/manifests/v1")
    assert (response.status, fake_registry.count()) == (429, asked)
    line = line_of(logged, name="up.test/other")
    check(logged, response, line, "HTTP 429 Too Many Requests")
    assert line["remembered"] is True


def test_a_cut_response(logged: Deployment, fake_registry: FakeRegistry) -> None:
    """A layer with wrong bytes, for several clients: each of them sees a cut, and each line says who sent it."""
    content = Synthetic(4 * MIB)
    digest = fake_registry.add_blob(content)
    path = f"/v2/up.test/app/blobs/{digest}"
    fake_registry.on("blob", faults.flipped(2 * MIB))
    bodies = logged.get_concurrently([path] * 3)
    assert all(len(response.body) < content.size for response in bodies)
    for line in eventually(lambda: len(found := lines(logged, name="up.test/app")) == 3 and found, "three lines"):
        assert line["status"] == 502 or line["end"] == f"cut: {line['reason']}"
        assert line["reason"].startswith("the upstream sent wrong bytes for ")
        assert line["host"] == fake_registry.authority
        assert line["error"] == f"{content.size} bytes with another digest than {digest}"


def test_requests_that_are_invalid(logged: Deployment) -> None:
    """Which the client has to correct."""
    for path in ("/v2/up.test/App/manifests/v1", "/v2/unknown.test/app/manifests/v1", "/v2/up.test/a/../b/tags/list"):
        response = logged.get(path)
        assert response.status in (400, 404)
        reason = json.loads(response.body)["errors"][0]["message"]
        assert line_of(logged, reason=reason)["status"] == response.status


def test_a_complete_response_has_no_reason(logged: Deployment, fake_registry: FakeRegistry) -> None:
    """Only failures have these fields."""
    fake_registry.add_image("app", "v1")
    assert logged.get("/v2/up.test/app/manifests/v1").status == 200
    assert not {"reason", "host", "error", "stage", "remembered"} & set(line_of(logged, reference="v1"))
