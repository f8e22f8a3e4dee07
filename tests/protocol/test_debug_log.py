"""Debug lines: requests, connections, tokens and decisions, without secrets; none of them at the level `info`."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from tests.support import faults
from tests.support.deployment import Deployment, upstream
from tests.support.fake_auth import FakeTokenService
from tests.support.fake_registry import FakeRegistry, basic

PASSWORD = "canary-password-4d1e"
SIGNATURE = "canary-signature-9a07"


def pull(deployment: Deployment, fake_registry: FakeRegistry) -> FakeTokenService:
    """Pull an image twice, with a login, a token, and a redirect of its layer."""
    service = FakeTokenService(fake_registry, login=basic("ann", PASSWORD))
    image = fake_registry.add_image("app", "v1", [b"a layer"])
    cdn = fake_registry.listen("cdn", "127.0.0.2")
    fake_registry.on(
        "blob", faults.redirected(f"{cdn.url}/v2/{SIGNATURE}/blobs/{image.layers[0]}?X-Amz-Signature={SIGNATURE}")
    )
    fake_registry.on("blob", lambda _, response: response.of(200, b"a layer"), listener="cdn")
    for path in ("manifests/v1", f"blobs/{image.layers[0]}", "manifests/v1", "manifests/none"):
        deployment.get(f"/v2/up.test/app/{path}")
    return service


def debug_lines(deployment: Deployment) -> list[Mapping[str, Any]]:
    """All lines of the level debug. Stops the server, which then has written them."""
    deployment.dockyard.stop()
    lines = [json.loads(line) for line in deployment.dockyard.read_log().splitlines() if line.startswith("{")]
    return [line for line in lines if line["level"] == "debug"]


def test_what_debug_says(make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry) -> None:
    """One line for each event; no query, no token, no password."""
    login = {"type": "basic", "username": "ann", "password": PASSWORD}
    upstreams = [upstream("up.test", fake_registry.url, auth=login)]
    deployment = make_deployment(upstreams=upstreams, logger={"level": "debug", "encoding": "json"})
    service = pull(deployment, fake_registry)
    lines = debug_lines(deployment)
    registry, cdn = fake_registry.authority, fake_registry.listeners["cdn"].authority

    def found(event: str, **fields: object) -> list[Mapping[str, Any]]:
        return [line for line in lines if line["event"] == event and fields.items() <= line.items()]

    assert found("routed", name="up.test/app", upstream="up.test", host=registry, repository="app")
    assert found("request to an upstream", method="HEAD", host=registry, path="/v2/app/manifests/v1", status=401)
    assert found("request to an upstream", method="HEAD", host=registry, status=200, is_reused=True, attempt=1)
    assert found("request to an upstream", method="GET", host=cdn, status=200, is_reused=False)
    assert found("connected", host=registry, address="127.0.0.1", is_proxy=False)
    refusals = [line for line in found("request to an upstream", status=401) if line["host"] == registry]
    challenges = found("the registry requires a login", scheme="bearer", credentials="`auth` in the settings")
    assert 0 < len(challenges) <= len(refusals)
    (token,) = found("token fetched", host=registry, scopes="repository:app:pull", expires_in_s=300.0)
    assert token["credentials"] == "`auth` in the settings"
    assert found("redirected", host=registry, to=cdn)
    assert found("download opened", name="up.test/app", source="upstream", start=0)
    assert [line["decision"] for line in found("tag checked")] == ["fetch", "serve", "fail"]
    log = deployment.dockyard.read_log()
    for secret in (PASSWORD, SIGNATURE, basic("ann", PASSWORD).split()[1], *service.valid):
        assert secret not in log


def test_a_range_that_is_resumed(make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry) -> None:
    """Why it broke off, and where it continues."""
    content = b"x" * (3 * 2**20)
    digest = fake_registry.add_blob(content)
    fake_registry.on("blob", faults.cut_at_offset(2 * 2**20), times=1)
    deployment = make_deployment(logger={"level": "debug", "encoding": "json"})
    assert deployment.get(f"/v2/up.test/app/blobs/{digest}").body == content
    lines = debug_lines(deployment)
    (broken,) = [line for line in lines if line["event"] == "download broke off: it is continued"]
    opened = [line["start"] for line in lines if line["event"] == "download opened"]
    assert opened == [0, broken["start"]]
    assert broken["host"] == fake_registry.authority


def test_info_has_none_of_these(make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry) -> None:
    """Only the requests."""
    deployment = make_deployment(logger={"encoding": "json"})
    pull(deployment, fake_registry)
    assert debug_lines(deployment) == []


def test_which_worker_is_asked(make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry) -> None:
    """The shard that owns the key."""
    deployment = make_deployment(workers=3, logger={"level": "debug", "encoding": "json"})
    for number in range(12):
        fake_registry.add_image("app", f"v{number}")
        deployment.get(f"/v2/up.test/app/manifests/v{number}")
    asked = [line for line in debug_lines(deployment) if line["event"] == "asking the worker that owns it"]
    assert {line["request"] for line in asked} <= {"TagRequest", "ManifestRequest"}
    assert any(line["key"].startswith("up.test/app:v") and line["shard"] in (0, 1, 2) for line in asked)
