"""The four types of authentication, and what follows when a login is rejected."""

import base64
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import attrs
import pytest

from dockyard.config.settings import Auth
from dockyard.config.types import Secret
from dockyard.errors import BlobUnknown, Denied, ManifestUnknown, Unavailable
from dockyard.oci.reference import Digest
from dockyard.upstream import challenges
from dockyard.upstream import keychain as keychain_module
from dockyard.upstream.credential_helper import run_helper
from tests.support import faults
from tests.support.bodies import digest_of
from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.fake_auth import FakeTokenService, require_authorization
from tests.support.fake_registry import Change, Image, basic
from tests.support.upstreams import (
    ANONYMOUS,
    BASIC,
    BEARER,
    KEYCHAIN,
    LATEST,
    LIMITS,
    Ward,
    error_text,
    only_if,
    together,
)

ANN = basic("ann", "s3cret-pass")
SECRET = "s3cret-bearer"


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    """A fake registry and makers of its clients."""
    with Ward(tmp_path) as ward:
        yield ward


@pytest.fixture
def image(ward: Ward) -> Image:
    """An image in the fake registry."""
    return ward.fake_registry.add_image("lib/app", "latest")


def keychain(directory: Path, document: object) -> Mapping[str, str]:
    """Write a keychain file; return an environment that refers to it."""
    (directory / "config.json").write_text(json.dumps(document))
    return {"DOCKER_CONFIG": str(directory), "PATH": f"{directory}:/usr/bin:/bin"}


def helper(directory: Path, name: str, script: str) -> None:
    """Install a credential helper that records its runs in `<name>.runs`."""
    path = directory / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\necho run >> {directory}/{name}.runs\nread server\n{script}\n")
    path.chmod(0o755)


def runs(directory: Path, name: str) -> int:
    """How often a helper was run."""
    path = directory / f"{name}.runs"
    return len(path.read_text().split()) if path.exists() else 0


def say(username: str, secret: str) -> str:
    """A shell command that prints a login as a helper does."""
    return f"echo '{json.dumps({'ServerURL': 'x', 'Username': username, 'Secret': secret})}'"


def first_then(directory: Path, first: str, then: str) -> str:
    """A shell command that runs `first` in the first run and `then` in later runs."""
    return f"if [ $(wc -l < {directory}/ours.runs) = 1 ]; then {first}; else {then}; fi"


def auth_entry(username: str, password: str) -> dict[str, str]:
    """A login as `docker login` writes it."""
    return {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}


# Basic


def test_basic_is_sent_after_a_challenge(ward: Ward, image: Image) -> None:
    """Later requests send it without a challenge."""
    require_authorization(ward.fake_registry, ANN)
    registry = ward.registry(auth=BASIC)
    for _ in range(3):
        registry.head_manifest("lib/app", LATEST)
    assert ward.authorizations() == [None, ANN, ANN, ANN]
    assert registry.head_blob("lib/app", Digest.parse(image.config))


def test_a_rejected_password_is_not_sent_again_for_a_while(ward: Ward, image: Image) -> None:
    """One failed login in total, not one per pull. Whether another repository requires it is asked without it."""
    require_authorization(ward.fake_registry, basic("bob", "other"))
    registry = ward.registry(auth=BASIC)
    with pytest.raises(Denied) as caught:
        registry.get_manifest("lib/app", LATEST)
    assert "s3cret" not in error_text(caught.value)
    for repository in ("lib/app", "lib/other"):
        with pytest.raises(Denied) as caught:
            registry.get_manifest(repository, LATEST)
        assert caught.value.remembered
    assert ward.authorizations() == [None, ANN, None]


def test_a_password_may_be_rejected_for_one_repository_only(ward: Ward, image: Image) -> None:
    """It is still sent for the repositories that accept it."""
    require_authorization(ward.fake_registry, ANN)
    ward.fake_registry.on("manifest", faults.challenged('Basic realm="x"'), repo="lib/private")
    registry = ward.registry(auth=BASIC)
    registry.head_manifest("lib/app", LATEST)
    with pytest.raises(Denied):
        registry.get_manifest("lib/private", LATEST)
    assert registry.get_manifest("lib/app", LATEST)


@pytest.mark.parametrize("auth", [BASIC, BEARER])
def test_credentials_are_not_sent_over_plain_http(
    ward: Ward, image: Image, auth: Auth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only to a registry on the loopback interface."""
    monkeypatch.setattr(challenges, "is_loopback", lambda host: False)
    require_authorization(ward.fake_registry, ANN)
    with pytest.raises(Denied, match="plain HTTP"):
        ward.registry(auth=auth).get_manifest("lib/app", LATEST)
    assert set(ward.authorizations()) <= {None}


def test_an_anonymous_upstream_responds_not_found(ward: Ward, image: Image) -> None:
    """401 from the registry is "not found" for clients, and no credentials are sent."""
    require_authorization(ward.fake_registry, ANN)
    with pytest.raises(ManifestUnknown):
        ward.registry(auth=ANONYMOUS).get_manifest("lib/app", LATEST)
    with pytest.raises(BlobUnknown):
        ward.registry(auth=ANONYMOUS).open_blob("lib/app", Digest.parse(image.config))
    assert set(ward.authorizations()) == {None}


# Bearer


def test_a_bearer_token_is_sent_unchanged(ward: Ward, image: Image) -> None:
    """With the first request, without a token service."""
    require_authorization(ward.fake_registry, f"Bearer {SECRET}")
    registry = ward.registry(auth=BEARER)
    for _ in range(2):
        registry.head_manifest("lib/app", LATEST)
    assert ward.authorizations() == [f"Bearer {SECRET}"] * 2


@pytest.mark.parametrize(("username", "user"), [("", "token"), ("ann", "ann")])
@pytest.mark.parametrize(
    "refusal",
    [None, faults.error_response(403), faults.error_response(401)],
)
def test_a_rejected_bearer_token_is_exchanged_and_that_is_remembered(
    ward: Ward, image: Image, username: str, user: str, refusal: Change | None
) -> None:
    """It is the password for the token service, whether the response has a challenge or not."""
    service = FakeTokenService(ward.fake_registry, login=basic(user, SECRET))
    if refusal is not None:
        is_verbatim = lambda request: request.header("Authorization") == f"Bearer {SECRET}"  # noqa: E731
        ward.fake_registry.on("manifest", only_if(is_verbatim, refusal))
    registry = ward.registry(auth=Auth("bearer", username, Secret(SECRET)))
    registry.head_manifest("lib/app", LATEST)
    assert ward.authorizations("manifest")[0] == f"Bearer {SECRET}"
    assert ward.fake_registry.count("ping") == (refusal is not None)
    ward.fake_registry.clear_exchanges()
    registry.head_manifest("lib/app", LATEST)
    registry.head_blob("lib/app", Digest.parse(image.config))
    assert f"Bearer {SECRET}" not in ward.authorizations()
    assert service.requests() == []


def test_a_bearer_token_that_is_rejected_in_both_ways_is_denied(ward: Ward, image: Image) -> None:
    """Sent once unchanged and once as a password."""
    service = FakeTokenService(ward.fake_registry, login=ANN)
    with pytest.raises(Denied) as caught:
        ward.registry(auth=BEARER).get_manifest("lib/app", LATEST)
    assert ward.authorizations("manifest") == [f"Bearer {SECRET}"]
    assert len(service.requests()) == 1
    assert SECRET not in error_text(caught.value)


# Keychain


def test_a_keychain_without_an_entry_is_anonymous(ward: Ward, image: Image, tmp_path: Path) -> None:
    """Public registries work without a login."""
    service = FakeTokenService(ward.fake_registry)
    environ = keychain(tmp_path, {"auths": {"other.test": auth_entry("ann", "x")}})
    ward.registry(auth=KEYCHAIN, environ=environ).head_manifest("lib/app", LATEST)
    assert [each.request.header("Authorization") for each in service.requests()] == [None]


def entry_of(kind: str) -> dict[str, str]:
    """A login in one of the forms of the keychain file."""
    entries = {
        "auth": auth_entry("ann", "s3cret-pass"),
        "fields": {"username": "ann", "password": "s3cret-pass"},
        "identity": {"auth": base64.b64encode(b"ann:").decode(), "identitytoken": "s3cret-refresh"},
        "registry": {"registrytoken": "s3cret-token"},
    }
    return entries[kind]


@pytest.mark.parametrize("kind", ["auth", "fields"])
def test_a_token_is_requested_with_the_login_of_the_keychain(
    ward: Ward, image: Image, tmp_path: Path, kind: str
) -> None:
    """In both forms of an entry."""
    service = FakeTokenService(ward.fake_registry, login=ANN)
    environ = keychain(tmp_path, {"auths": {ward.fake_registry.authority: entry_of(kind)}})
    ward.registry(auth=KEYCHAIN, environ=environ).head_manifest("lib/app", LATEST)
    assert [each.request.header("Authorization") for each in service.requests()] == [ANN]


def test_an_identity_token_is_exchanged_by_post(ward: Ward, image: Image, tmp_path: Path) -> None:
    """It is never sent to the registry."""
    FakeTokenService(ward.fake_registry)
    environ = keychain(tmp_path, {"auths": {ward.fake_registry.authority: entry_of("identity")}})
    ward.registry(auth=KEYCHAIN, environ=environ).head_manifest("lib/app", LATEST)
    (seen,) = ward.fake_registry.received("token")
    assert seen.request.method == "POST"
    assert b"refresh_token=s3cret-refresh" in seen.request.body
    assert not any("s3cret" in (value or "") for value in ward.authorizations())


def test_a_registry_token_is_sent_unchanged(ward: Ward, image: Image, tmp_path: Path) -> None:
    """It is never exchanged."""
    require_authorization(ward.fake_registry, "Bearer s3cret-token", f'Bearer realm="{ward.fake_registry.url}/token"')
    environ = keychain(tmp_path, {"auths": {ward.fake_registry.authority: entry_of("registry")}})
    ward.registry(auth=KEYCHAIN, environ=environ).head_manifest("lib/app", LATEST)
    assert ward.authorizations() == ["Bearer s3cret-token"]


def test_a_helper_is_run_once_for_many_requests(ward: Ward, image: Image, tmp_path: Path) -> None:
    """A hundred requests, twenty of them at once."""
    helper(tmp_path, "ours", say("ann", "s3cret-pass"))
    require_authorization(ward.fake_registry, ANN)
    environ = keychain(tmp_path, {"credHelpers": {ward.fake_registry.authority: "ours"}})
    registry = ward.registry(auth=KEYCHAIN, environ=environ)
    together(20, lambda: registry.head_manifest("lib/app", LATEST))
    for _ in range(80):
        registry.head_manifest("lib/app", LATEST)
    assert runs(tmp_path, "ours") == 1


@pytest.mark.parametrize("status", [401, 403])
def test_an_expired_password_is_renewed(ward: Ward, image: Image, tmp_path: Path, status: int) -> None:
    """ECR responds with 403 when a password has expired; the same request succeeds with the new one."""
    helper(tmp_path, "ours", first_then(tmp_path, say("AWS", "old"), say("AWS", "new")))
    old, new = basic("AWS", "old"), basic("AWS", "new")
    environ = keychain(tmp_path, {"credHelpers": {ward.fake_registry.authority: "ours"}})
    registry = ward.registry(auth=KEYCHAIN, environ=environ)
    rules = require_authorization(ward.fake_registry, old)
    registry.head_manifest("lib/app", LATEST)
    ward.fake_registry.remove_rules(*rules)
    refusal = faults.challenged('Basic realm="x"') if status == 401 else faults.error_response(403)
    ward.fake_registry.on("manifest", only_if(lambda request: request.header("Authorization") != new, refusal))
    ward.fake_registry.clear_exchanges()
    registry.head_manifest("lib/app", LATEST)
    assert ward.authorizations() == [old, new]
    assert runs(tmp_path, "ours") == 2


def test_a_helper_without_a_newer_login_is_not_run_for_each_rejection(ward: Ward, image: Image, tmp_path: Path) -> None:
    """A forbidden repository causes one more run, not one per request."""
    helper(tmp_path, "ours", say("ann", "s3cret-pass"))
    require_authorization(ward.fake_registry, ANN)
    ward.fake_registry.on("manifest", faults.error_response(403), repo="lib/private")
    environ = keychain(tmp_path, {"credHelpers": {ward.fake_registry.authority: "ours"}})
    registry = ward.registry(auth=KEYCHAIN, environ=environ)
    registry.head_manifest("lib/app", LATEST)
    for _ in range(5):
        with pytest.raises(Denied):
            registry.get_manifest("lib/private", LATEST)
    assert runs(tmp_path, "ours") == 2


def test_a_login_that_the_token_service_rejects_is_renewed(ward: Ward, image: Image, tmp_path: Path) -> None:
    """Within the same operation."""
    helper(tmp_path, "ours", first_then(tmp_path, say("ann", "old"), say("ann", "new")))
    service = FakeTokenService(ward.fake_registry, login=basic("ann", "new"))
    environ = keychain(tmp_path, {"credHelpers": {ward.fake_registry.authority: "ours"}})
    ward.registry(auth=KEYCHAIN, environ=environ).head_manifest("lib/app", LATEST)
    sent = [each.request.header("Authorization") for each in service.requests()]
    assert sent == [basic("ann", "old"), basic("ann", "new")]


@pytest.mark.parametrize(
    ("script", "words", "check_timeout"),
    [
        ("echo 'no credentials server URL'; exit 1", "failed", 60.0),
        ("echo s3cret-noise >&2; exit 2", "failed", 60.0),
        ("echo s3cret-garbage", "no sensible answer", 60.0),
        ("""echo '{"Username":"ann"}'""", "no sensible answer", 60.0),
        ("head -c 200000 /dev/zero", "prints too much", 60.0),
        ("sleep 60", "takes too long", 3.0),
        ("sleep 60", "takes too long", 0.3),
        (None, "not installed", 60.0),
    ],
)
def test_a_helper_that_fails_is_an_outage(
    ward: Ward,
    image: Image,
    tmp_path: Path,
    script: str | None,
    words: str,
    check_timeout: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No anonymous request is sent, the error quotes no output of the helper, and the breaker stays closed."""
    monkeypatch.setattr(
        keychain_module,
        "run_helper",
        partial(run_helper, timeout_s=1.0 if "sleep" in (script or "") else EVENT_TIMEOUT_S),
    )
    if script is not None:
        helper(tmp_path, "ours", script)
    environ = keychain(tmp_path, {"credHelpers": {ward.fake_registry.authority: "ours"}})
    registry = ward.registry(auth=KEYCHAIN, environ=environ, limits=attrs.evolve(LIMITS, check_timeout=check_timeout))
    for _ in range(2):
        with pytest.raises(Unavailable, match=words) as caught:
            registry.head_manifest("lib/app", LATEST)
        assert "s3cret" not in error_text(caught.value)
        assert not caught.value.remembered
    assert ward.fake_registry.count() == 0
    assert runs(tmp_path, "ours") == (script is not None)


def test_no_login_in_the_helper_is_anonymous(ward: Ward, image: Image, tmp_path: Path) -> None:
    """The helper prints "not found" on stdout and exits with status 1."""
    helper(tmp_path, "ours", "echo 'credentials not found in native keychain'; exit 1")
    environ = keychain(tmp_path, {"credsStore": "ours"})
    ward.registry(auth=KEYCHAIN, environ=environ).head_manifest("lib/app", LATEST)
    assert ward.authorizations() == [None]
    assert runs(tmp_path, "ours") == 1


def test_a_missing_blob_of_a_private_upstream_is_unknown(ward: Ward, image: Image) -> None:
    """404 is a valid response, with any credentials."""
    require_authorization(ward.fake_registry, ANN)
    with pytest.raises(BlobUnknown):
        ward.registry(auth=BASIC).open_blob("lib/app", Digest.parse(digest_of(b"nothing")))


@pytest.mark.parametrize("has_token", [False, True], ids=["never had a token", "the token is rejected"])
def test_an_unreachable_token_service_is_an_outage(ward: Ward, image: Image, *, has_token: bool) -> None:
    """Also for manifests by digest, with or without an earlier token."""
    listener = ward.fake_registry.listen("token")
    tokens = FakeTokenService(ward.fake_registry, realm=f"{listener.url}/token")
    registry = ward.registry()
    if has_token:
        registry.get_manifest("lib/app", Digest.parse(image.digest))
        tokens.revoke_all()
    listener.close()
    with pytest.raises(Unavailable, match="token service"):
        registry.get_manifest("lib/app", Digest.parse(image.digest))
