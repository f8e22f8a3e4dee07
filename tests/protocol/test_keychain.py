"""Credentials from a Docker `config.json` and from credential helpers."""

import base64
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.support import faults
from tests.support.busy_machine import is_within
from tests.support.certificates import server_context
from tests.support.deployment import Deployment, upstream
from tests.support.fake_auth import FakeTokenService, require_authorization
from tests.support.fake_registry import FakeRegistry, Image, basic

USER, PASSWORD = "canary-user", "canary-password-77ab"
ENCODED = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
PATH = "/v2/up.test/app/manifests/v1"


@pytest.fixture
def image(fake_registry: FakeRegistry) -> Image:
    """An image that can be pulled with the right credentials."""
    return fake_registry.add_image("app", "v1")


class Keychain:
    """A directory with a config.json and credential helpers."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.runs = directory / "runs"

    def write(self, **config: Any) -> None:
        """Replace config.json as Kubernetes does: a new file is moved over the old one."""
        (self.directory / "new.json").write_text(json.dumps(config))
        (self.directory / "new.json").replace(self.directory / "config.json")

    def add_helper(self, name: str, script: str) -> None:
        """Write a shell script `docker-credential-<name>`; the server URL is in `$server`, every run appends a line."""
        path = self.directory / f"docker-credential-{name}"
        path.write_text(f'#!/bin/sh\nread server\necho "$1 $server" >> {self.runs}\n{script}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def run_lines(self) -> list[str]:
        return self.runs.read_text().splitlines() if self.runs.exists() else []

    @property
    def environ(self) -> dict[str, str]:
        return {"DOCKER_CONFIG": str(self.directory), "PATH": f"{self.directory}:{os.environ['PATH']}"}


@pytest.fixture
def keychain(tmp_path: Path) -> Keychain:
    """A directory for DOCKER_CONFIG."""
    directory = tmp_path / "docker"
    directory.mkdir()
    return Keychain(directory)


def _without_auth(fake_registry: FakeRegistry, **more: Any) -> list[dict[str, Any]]:
    """An upstream without `auth` uses the keychain."""
    entry = upstream("up.test", fake_registry.url) | more
    del entry["auth"]
    return [entry]


def _answer(username: str, secret: str) -> str:
    return "echo '" + json.dumps({"ServerURL": "x", "Username": username, "Secret": secret}) + "'"


@pytest.mark.parametrize(
    "entry",
    [
        {"auth": ENCODED},
        {"auth": base64.b64encode(f"{USER}:{PASSWORD}\0\0".encode()).decode()},
        {"username": USER, "password": PASSWORD},
    ],
    ids=["auth", "padded auth", "username and password"],
)
@pytest.mark.parametrize("key", ["{host}", "http://{host}", "https://{host}/v1/"])
def test_entries_of_the_file(
    make_deployment: Callable[..., Deployment],
    fake_registry: FakeRegistry,
    keychain: Keychain,
    image: Image,
    entry: dict[str, str],
    key: str,
) -> None:
    """A login in the file is used for its host, however the key is written."""
    require_authorization(fake_registry, basic(USER, PASSWORD))
    keychain.write(auths={key.format(host=fake_registry.authority): entry})
    deployment = make_deployment(upstreams=_without_auth(fake_registry), environ=keychain.environ)
    assert deployment.get(PATH).body == image.body
    assert PASSWORD not in deployment.read_log()


def test_a_password_with_colons(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, keychain: Keychain, image: Image
) -> None:
    """`auth` is split at its first colon only."""
    require_authorization(fake_registry, basic(USER, "a:b:c"))
    auth = base64.b64encode(f"{USER}:a:b:c".encode()).decode()
    keychain.write(auths={fake_registry.authority: {"auth": auth}})
    assert make_deployment(upstreams=_without_auth(fake_registry), environ=keychain.environ).get(PATH).status == 200


def test_an_identity_token_is_exchanged_by_post(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, keychain: Keychain, image: Image
) -> None:
    """`identitytoken` is a refresh token: it is sent to the realm in a form, not in a URL."""
    service = FakeTokenService(fake_registry)
    keychain.write(auths={fake_registry.authority: {"auth": ENCODED, "identitytoken": PASSWORD}})
    deployment = make_deployment(upstreams=_without_auth(fake_registry), environ=keychain.environ)
    assert deployment.get(PATH).body == image.body
    (token_request,) = service.requests()
    assert token_request.request.method == "POST"
    form = token_request.request.body.decode()
    assert "grant_type=refresh_token" in form
    assert f"refresh_token={PASSWORD}" in form
    assert service.scopes() == [["repository:app:pull"]]
    assert PASSWORD not in token_request.request.target


def test_a_registry_token_is_sent_unchanged(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, keychain: Keychain, image: Image
) -> None:
    """`registrytoken` is sent to the registry as a bearer token."""
    require_authorization(fake_registry, f"Bearer {PASSWORD}", f'Bearer realm="{fake_registry.url}/token"')
    keychain.write(auths={fake_registry.authority: {"registrytoken": PASSWORD}})
    assert make_deployment(upstreams=_without_auth(fake_registry), environ=keychain.environ).get(PATH).status == 200
    assert fake_registry.count("token") == 0


@pytest.mark.parametrize("where", ["credHelpers", "credsStore"])
def test_a_credential_is_cached_after_the_helper_ran(
    make_deployment: Callable[..., Deployment],
    fake_registry: FakeRegistry,
    keychain: Keychain,
    image: Image,
    where: str,
) -> None:
    """A hundred concurrent requests run the helper once, with `get` and the host on its standard input."""
    require_authorization(fake_registry, basic(USER, PASSWORD))
    keychain.add_helper("canary", _answer(USER, PASSWORD))
    keychain.write(**({where: {fake_registry.authority: "canary"}} if where == "credHelpers" else {where: "canary"}))
    deployment = make_deployment(upstreams=_without_auth(fake_registry), environ=keychain.environ)
    for _ in range(4):
        assert {response.status for response in deployment.get_concurrently([PATH] * 25)} == {200}
    lines = keychain.run_lines()
    assert len(lines) == 1 or (where == "credsStore" and len(lines) <= 2)
    assert {line.split()[0] for line in lines} == {"get"}
    assert fake_registry.authority in lines[-1]
    assert PASSWORD not in deployment.read_log()


def test_a_helper_may_give_an_identity_token(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, keychain: Keychain, image: Image
) -> None:
    """The user name `<token>` means that the secret is a refresh token."""
    service = FakeTokenService(fake_registry)
    keychain.add_helper("canary", _answer("<token>", PASSWORD))
    keychain.write(credHelpers={fake_registry.authority: "canary"})
    assert make_deployment(upstreams=_without_auth(fake_registry), environ=keychain.environ).get(PATH).status == 200
    (token_request,) = service.requests()
    assert f"refresh_token={PASSWORD}" in token_request.request.body.decode()


@pytest.mark.parametrize(
    "config", ["nothing", "no file", "not found", "another host"], ids=lambda config: str(config).replace(" ", "-")
)
def test_requests_without_a_credential_are_anonymous(
    make_deployment: Callable[..., Deployment],
    fake_registry: FakeRegistry,
    keychain: Keychain,
    image: Image,
    config: str,
) -> None:
    """No file, no entry, or a helper without an entry: the request is sent without credentials."""
    match config:
        case "nothing":
            keychain.write()
        case "not found":
            keychain.add_helper("canary", 'echo "credentials not found in native keychain"; exit 1')
            keychain.write(credHelpers={fake_registry.authority: "canary"})
        case "another host":
            keychain.write(auths={"elsewhere.test": {"auth": ENCODED}})
    deployment = make_deployment(upstreams=_without_auth(fake_registry), environ=keychain.environ)
    assert deployment.get(PATH).body == image.body
    assert {exchange.request.header("Authorization") for exchange in fake_registry.received()} == {None}


BROKEN_HELPERS = {
    "error": 'echo "cannot reach the vault"; exit 1',
    "error on stderr": "echo secret-stderr-canary >&2; exit 3",
    "garbage": "echo this is not json",
    "empty": "true",
    "hangs": "sleep 60",
    "10 MB": "head -c 10000000 /dev/zero | tr '\\0' x",
    "missing": "",
    "a path": "",
}


@pytest.mark.parametrize("helper", BROKEN_HELPERS)
def test_a_failing_helper_is_an_error_not_anonymous_access(
    make_deployment: Callable[..., Deployment],
    fake_registry: FakeRegistry,
    keychain: Keychain,
    image: Image,
    helper: str,
) -> None:
    """A configured helper that fails makes the pull fail within its timeout: there is no fallback to anonymous."""
    name = {"missing": "not-there", "a path": "../../bin/sh"}.get(helper, "canary")
    if name == "canary":
        keychain.add_helper(name, BROKEN_HELPERS[helper])
    keychain.write(credHelpers={fake_registry.authority: name})
    require_authorization(fake_registry, basic(USER, PASSWORD))
    deployment = make_deployment(upstreams=_without_auth(fake_registry), environ=keychain.environ)
    response = deployment.get(PATH)
    assert response.status in (502, 503, 504)
    assert is_within(response.took_s, 11)
    assert fake_registry.count("manifest", "GET") == 0
    deployment.assert_no_leak(response)
    assert "secret-stderr-canary" not in response.body.decode()


@pytest.mark.parametrize("helper", ["error", "hangs"])
def test_a_cached_tag_outlives_its_helper(
    make_deployment: Callable[..., Deployment],
    fake_registry: FakeRegistry,
    keychain: Keychain,
    image: Image,
    helper: str,
) -> None:
    """When the helper fails later, cached content is served stale."""
    require_authorization(fake_registry, basic(USER, PASSWORD))
    keychain.add_helper("canary", _answer(USER, PASSWORD))
    keychain.write(credHelpers={fake_registry.authority: "canary"})
    deployment = make_deployment(upstreams=_without_auth(fake_registry), environ=keychain.environ)
    assert deployment.get(PATH).status == 200
    keychain.add_helper("broken", BROKEN_HELPERS[helper])
    keychain.write(credHelpers={fake_registry.authority: "broken"})
    response = deployment.get(PATH)
    assert (response.status, response.body) == (200, image.body)
    assert is_within(response.took_s, 11)


def test_a_changed_config_file_is_read_again(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, keychain: Keychain, image: Image
) -> None:
    """A new password in the file is used for the next request, without a restart."""
    rules = require_authorization(fake_registry, basic(USER, "the old one"))
    keychain.write(auths={fake_registry.authority: {"username": USER, "password": "the old one"}})
    deployment = make_deployment(upstreams=_without_auth(fake_registry), environ=keychain.environ)
    assert deployment.get(PATH).status == 200
    fake_registry.remove_rules(*rules)
    require_authorization(fake_registry, basic(USER, PASSWORD))
    keychain.write(auths={fake_registry.authority: {"username": USER, "password": PASSWORD}})
    response = deployment.get(PATH)
    assert (response.status, response.header("Warning")) == (200, None)


@pytest.fixture
def hub(fake_registry: FakeRegistry, tmp_path: Path) -> list[dict[str, Any]]:
    """A fake Docker Hub: the fake registry, over TLS, behind a forward proxy that leads nowhere else."""
    authority = trustme.CA()
    context = server_context(authority, "registry-1.docker.io")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    proxy = fake_registry.listen("proxy", tunnel=context)
    entry = upstream("docker.io", "registry-1.docker.io", proxy=proxy.url, ca_file=str(tmp_path / "ca.pem"))
    del entry["auth"]
    return [entry]


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "registry-1.docker.io"])
def test_the_docker_hub_login_is_found(
    make_deployment: Callable[..., Deployment],
    fake_registry: FakeRegistry,
    keychain: Keychain,
    hub: list[dict[str, Any]],
    key: str,
) -> None:
    """A login made by `docker login` is used for `registry-1.docker.io`."""
    image = fake_registry.add_image("library/app", "v1")
    require_authorization(fake_registry, basic(USER, PASSWORD))
    keychain.write(auths={key: {"auth": ENCODED}})
    deployment = make_deployment(upstreams=hub, environ=keychain.environ)
    assert deployment.get("/v2/library/app/manifests/v1").body == image.body
    assert {each.request.target for each in fake_registry.received("connect")} == {"registry-1.docker.io:443"}
    assert PASSWORD not in str([each.request for each in fake_registry.received("connect")])


def test_a_helper_for_docker_hub_gets_its_legacy_url(
    make_deployment: Callable[..., Deployment],
    fake_registry: FakeRegistry,
    keychain: Keychain,
    hub: list[dict[str, Any]],
) -> None:
    """Helpers store the Docker Hub login under `https://index.docker.io/v1/`."""
    fake_registry.add_image("library/app", "v1")
    require_authorization(fake_registry, basic(USER, PASSWORD))
    keychain.add_helper("canary", _answer(USER, PASSWORD))
    keychain.write(credsStore="canary")
    assert make_deployment(upstreams=hub, environ=keychain.environ).get("/v2/library/app/manifests/v1").status == 200
    assert keychain.run_lines()[0] == "get https://index.docker.io/v1/"


def test_a_rejected_login_is_403(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, keychain: Keychain, image: Image
) -> None:
    """A login that the registry rejects is 403, without a challenge to the client."""
    fake_registry.on(None, faults.challenged('Basic realm="origin"'))
    keychain.write(auths={fake_registry.authority: {"auth": ENCODED}})
    response = make_deployment(upstreams=_without_auth(fake_registry), environ=keychain.environ).get(PATH)
    assert (response.status, response.error) == (403, "DENIED")


def test_basic_credentials_are_not_sent_in_plain_text(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, keychain: Keychain, image: Image
) -> None:
    """A registry that is reached by plain HTTP, and is not on this machine, gets no password."""
    require_authorization(fake_registry, basic(USER, PASSWORD))
    keychain.write(auths={"registry.example.com": {"auth": ENCODED}})
    deployment = make_deployment(
        upstreams=_without_auth(fake_registry, registry="http://registry.example.com", proxy=fake_registry.url),
        environ=keychain.environ,
    )
    assert deployment.get(PATH).status in (403, 502)
    assert {each.request.header("Authorization") for each in fake_registry.received()} == {None}
