"""Every route of the application is behind the gate: what is denied touches nothing.

The routes come from the application itself, so that one without a gate fails here.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from dockyard.access.access_tokens import AccessTokens
from dockyard.access.authenticator import Authenticator
from dockyard.access.rules import Rules
from dockyard.cache.threads import Threads
from dockyard.config.settings import TOKEN_PATH, AccessRule, AccessSettings, Settings
from dockyard.web.access_gate import AccessControl
from dockyard.web.app import Services, create_app
from dockyard.web.concealment import Concealment
from dockyard.web.outer_app import OuterApp

METHODS = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "PROPFIND", "get"]
DIGEST = f"sha256:{'a' * 64}"


class Untouchable:
    """A service whose use is recorded and fails."""

    def __init__(self, name: str, touched: list[str]) -> None:
        self._name = name
        self._touched = touched

    def __getattr__(self, name: str) -> Any:
        self._touched.append(f"{self._name}.{name}")
        raise AssertionError(self._touched[-1])


@pytest.fixture
def touched() -> list[str]:
    """What was used."""
    return []


@pytest.fixture(params=["basic", "bearer"])
def app(tmp_path: Path, touched: list[str], request: pytest.FixtureRequest) -> OuterApp:
    """The application with the rules of a server that is closed to all."""
    (tmp_path / "htpasswd").touch()
    access = AccessSettings(
        htpasswd=str(tmp_path / "htpasswd"),
        challenge=request.param,
        rules=(AccessRule(allow=False), AccessRule(allow=False, actions=("status",))),
    )
    settings = Settings(access=access)

    def service(name: str) -> Any:
        return Untouchable(name, touched)

    control = AccessControl(
        Authenticator(access),
        Rules(access, settings.upstreams),
        service("links"),
        service("admissions"),
        Threads(),
        Concealment(b"key"),
        tokens=AccessTokens() if settings.issues_tokens else None,
    )
    services = Services(
        **{field.name: service(field.name) for field in attrs.fields(Services) if field.name != "access"},
        access=control,
    )
    return create_app(settings, services)


def send(app: OuterApp, method: str, path: str, *headers: tuple[bytes, bytes]) -> tuple[int, dict[bytes, bytes], bytes]:
    """Send a request; return status, headers and body."""
    events: list[dict[str, Any]] = []

    async def send(event: dict[str, Any]) -> None:
        events.append(event)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"dockyard.test"), *headers],
        "client": ("192.0.2.1", 1),
        "server": ("192.0.2.2", 5000),
    }
    asyncio.run(app(scope, receive, send))
    body = b"".join(event.get("body", b"") for event in events[1:])
    return events[0]["status"], dict(events[0]["headers"]), body


def examples(app: OuterApp) -> list[str]:
    """Paths of every route, in all forms."""
    paths = []
    for template in app.paths:
        for reference in ("latest", DIGEST, "list"):
            path = template.format(name="docker.io/library/alpine", reference=reference)
            paths.append(path)
            if path.startswith("/v2/"):
                paths += [f"/docker.io{path}", path.replace("/docker.io", "")]
    return sorted({*paths, "/v2"} - {TOKEN_PATH})


def test_there_are_routes(app: OuterApp) -> None:
    """All that is known of; a new one is tested as these."""
    assert set(app.paths) >= {"/v2/", "/v2/{name}/blobs/{reference}", "/", "/metrics", "/healthz"}


@pytest.mark.parametrize("method", METHODS)
def test_no_route_responds_without_the_gate(app: OuterApp, touched: list[str], method: str) -> None:
    """With any method, with and without a login that is wrong: no service is used, and there is no content."""
    for path in examples(app):
        for headers in ([], [(b"authorization", b"Basic ZXZlOnJpZ2h0")], [(b"if-none-match", b"*")]):
            status, answered, body = send(app, method, path, *headers)
            assert touched == [], (method, path)
            assert status in ({401, 404} if method in {"GET", "HEAD"} else {404, 405}), (method, path, status)
            assert b"alpine" not in body
            assert not {b"etag", b"docker-content-digest", b"location", b"cache-status"} & set(answered)
            if status == 401:
                expected = b"Bearer realm=" if TOKEN_PATH in app.paths and "/v2" in path else b'Basic realm="dockyard"'
                assert answered[b"www-authenticate"].startswith(expected)


@pytest.mark.parametrize("method", METHODS)
def test_access_tokens_are_made_without_anything(app: OuterApp, touched: list[str], method: str) -> None:
    """There are some with `challenge: bearer` only; a wrong login gets none, and one for no login gets nothing."""
    status, _, body = send(app, method, TOKEN_PATH)
    if TOKEN_PATH not in app.paths:
        assert status == (404 if method in {"GET", "HEAD"} else 405)
        return
    assert status == ({"GET": 200, "HEAD": 200, "POST": 400}.get(method, 405))
    if method not in {"GET", "HEAD"}:
        assert b'token"' not in body
        return
    assert send(app, method, TOKEN_PATH, (b"authorization", b"Basic ZXZlOnJpZ2h0"))[0] == 401
    _, _, body = send(app, "GET", TOKEN_PATH)
    token = json.loads(body)["token"].encode()
    for path in examples(app):
        status, answered, _ = send(app, method, path, (b"authorization", b"Bearer " + token))
        assert status in {401, 404}, path
        assert not {b"etag", b"docker-content-digest", b"location", b"cache-status"} & set(answered)
    assert touched == []


@pytest.mark.parametrize(
    "path",
    ["/v2/_catalog", "/v3/", "/v2/x", "/admin", "/v2/docker.io/alpine/blobs/uploads/", "/metrics/", "/V2/", "/v2//"],
)
def test_other_paths_have_no_content(app: OuterApp, touched: list[str], path: str) -> None:
    """There is nothing there."""
    for method in METHODS:
        status, _, _ = send(app, method, path)
        assert status in {400, 401, 404, 405}
    assert touched == []
