"""The page at `/` of a running server, and the prefixes that `dockyard pull` gets there."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from dockyard import __version__
from tests.support.deployment import Deployment, upstream
from tests.support.fake_registry import FakeRegistry
from tests.support.paths import ROOT

LIMIT_S = 30.0


def test_a_browser_gets_a_page(deployment: Deployment) -> None:
    """With the address that it used, the version, and nothing that another server or an intermediary could use."""
    page = deployment.get("/", Accept="text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")

    text = page.body.decode()
    assert (page.status, page.header("Content-Type")) == (200, "text/html; charset=utf-8")
    assert page.header("Cache-Control") == "no-store"
    assert page.header("X-Content-Type-Options") == "nosniff"
    assert f"docker pull 127.0.0.1:{deployment.dockyard.port}/docker.io/" in text
    assert f"docker pull 127.0.0.1:{deployment.dockyard.port}/up.test/NAME:TAG" in text
    assert __version__ in text
    assert {"healthz", "readyz", "metrics"} == set(re.findall(r'<a href="([^"]+)"', text))
    assert deployment.fake_registry.url not in text
    assert str(deployment.dockyard.storage) not in text


def test_the_policy_allows_the_style_sheet_and_nothing_else(deployment: Deployment) -> None:
    """The page loads nothing and runs no script."""
    page = deployment.get("/")

    (style,) = re.findall(rb"<style>(.*?)</style>", page.body, re.DOTALL)
    hashed = base64.b64encode(hashlib.sha256(style).digest()).decode()
    policy = page.header("Content-Security-Policy") or ""
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{hashed}'; img-src data:;")
    assert re.findall(rb"<script|<iframe|<img|<form|https?://|//[a-z]", page.body) == []


def test_a_program_gets_version_and_prefixes(deployment: Deployment) -> None:
    """The prefixes in the order of the settings."""
    response = deployment.get("/", Accept="application/json")

    assert (response.status, response.header("Content-Type")) == (200, "application/json")
    assert response.json == {"version": __version__, "prefixes": ["docker.io", "up.test"]}


@pytest.mark.parametrize("accept", ["text/html", "application/json"])
def test_head_is_get_without_the_body(deployment: Deployment, accept: str) -> None:
    """With the same headers."""
    get, head = deployment.get("/", Accept=accept), deployment.head("/", Accept=accept)

    assert (head.status, head.body) == (200, b"")
    for name in ("Content-Type", "Content-Length", "Cache-Control", "Vary"):
        assert head.header(name) == get.header(name)
    assert get.header("Content-Length") == str(len(get.body))


@pytest.mark.parametrize(
    "accept", ["*/*", "text/*", "text/html;q=0.9, application/json;q=0.1", "image/png", "nonsense", ""]
)
def test_everybody_else_gets_the_page(deployment: Deployment, accept: str) -> None:
    """Whatever they accept."""
    assert deployment.get("/", Accept=accept).header("Content-Type") == "text/html; charset=utf-8"


@pytest.mark.parametrize("host", ["<script>alert(1)</script>", 'a"onload="x', "user:secret@host", "a'b;c"])
def test_a_host_that_is_none_is_not_shown(deployment: Deployment, host: str) -> None:
    """It is replaced by a placeholder."""
    page = deployment.get("/", Host=host)

    assert page.status == 200
    assert host not in page.body.decode()
    assert "docker pull ADDRESS:PORT/docker.io/" in page.body.decode()


@pytest.mark.parametrize("path", ["/index.html", "/favicon.ico", "/ui", "/docker.io"])
def test_other_paths_are_not_found(deployment: Deployment, path: str) -> None:
    """As JSON, also for a browser."""
    response = deployment.get(path, Accept="text/html")

    assert (response.status, response.error) == (404, "UNSUPPORTED")


def test_the_api_is_the_same_for_browsers(deployment: Deployment) -> None:
    """`/v2/` is for clients of the registry protocol, and there is no POST."""
    assert deployment.get("/v2/", Accept="text/html").body == b"{}"
    assert deployment.request("POST", "/").status == 405


@pytest.fixture
def internal() -> Iterator[FakeRegistry]:
    """Another registry, which is the default upstream."""
    with FakeRegistry() as internal:
        yield internal


@pytest.fixture
def mixed(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, internal: FakeRegistry
) -> Deployment:
    """A Dockyard with a Docker Hub, and `internal`, the default."""
    return make_deployment(
        upstreams=[
            upstream("docker.io", fake_registry.url),
            upstream("internal", internal.url, default=True),
            upstream("ghcr.io/my-org", internal.url),
        ]
    )


def pull(deployment: Deployment, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `dockyard pull`."""
    return subprocess.run(
        [sys.executable, "-m", "dockyard", "pull", "--json", *words],
        env={"DOCKYARD_URL": deployment.dockyard.url, "PATH": "/usr/bin:/bin"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def requested(registry: FakeRegistry) -> set[str]:
    """The repositories of which a manifest was requested."""
    targets = [exchange.request.target for exchange in registry.received("manifest")]
    return {target.removeprefix("/v2/").partition("/manifests/")[0] for target in targets}


def test_names_mean_the_same_as_for_clients(
    mixed: Deployment, fake_registry: FakeRegistry, internal: FakeRegistry
) -> None:
    """A prefix selects its upstream; without one, an image is of Docker Hub, whatever the default is."""
    fake_registry.add_image("library/nginx", "latest")
    fake_registry.add_image("team/app", "latest")
    internal.add_image("team/app", "latest", [b"another layer"])
    internal.add_image("app", "latest")

    done = pull(
        mixed,
        "internal/team/app",
        f"127.0.0.1:{mixed.dockyard.port}/internal/app",
        "nginx",
        "team/app",
        "ghcr.io/my-org/app",
    )

    assert done.returncode == 0, done.stdout + done.stderr
    images = [json.loads(line)["image"] for line in done.stdout.splitlines() if '"event": "image"' in line]
    assert set(images) == {
        *("internal/team/app:latest", "internal/app:latest", "ghcr.io/my-org/app:latest"),
        *("docker.io/library/nginx:latest", "docker.io/team/app:latest"),
    }
    assert requested(fake_registry) == {"library/nginx", "team/app"}
    assert requested(internal) == {"team/app", "app"}


@pytest.mark.parametrize(
    "name", ["quay.io/org/app", "ghcr.io/other/app", "reg.example:5001/org/app", "reg.example:5001/internal/app"]
)
def test_a_name_that_no_upstream_serves_requests_nothing(
    mixed: Deployment, fake_registry: FakeRegistry, internal: FakeRegistry, name: str
) -> None:
    """And the error lists the prefixes."""
    done = pull(mixed, name)

    (image,) = [json.loads(line) for line in done.stdout.splitlines() if '"event": "image"' in line]
    assert done.returncode == 1
    assert all(prefix in image["errors"][0] for prefix in ("docker.io", "internal", "ghcr.io/my-org"))
    assert requested(fake_registry) | requested(internal) == set()


def test_without_docker_hub_a_short_name_is_not_found(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """It is not taken from the default upstream."""
    fake_registry.add_image("nginx", "latest")
    fake_registry.add_image("team/app", "latest")
    deployment = make_deployment(upstreams=[upstream("internal", fake_registry.url, default=True)])

    done = pull(deployment, "nginx", "team/app")

    assert done.returncode == 1
    assert done.stdout.count("(configured prefixes: internal)") == 2
    assert requested(fake_registry) == set()
